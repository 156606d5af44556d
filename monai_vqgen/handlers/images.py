"""Pictures while training: what the autoencoder makes of slices, and what a prior draws.

Shape suffixes: b batch, c channels, k codebook size, s spatial axes (2 or 3).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from monai_vqgen.data.processes import process_rank
from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.files import replace_file
from monai_vqgen.inferers.draws import GumbelNoise

__all__ = ["ReconstructionImages", "SampleImages", "image_rows"]

_GAP = 2  # pixels between pictures
_LARGEST_CELL = 256  # pixels of a code's picture, so that code grids can be looked at


def image_rows(rows: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Lay out rows of images (b, c, *s) in [0, 1] as one picture (h, w), of three channels (h, w, 3).

    Of volumes the three middle slices are shown; other numbers of channels stand side by side.
    """
    from monai_vqgen.plots.pictures import as_shown

    drawn = []
    for images_bcs in rows:
        shown = [as_shown(image_cs) for image_cs in images_bcs.detach().float().cpu().numpy()]
        gaps = [(0, _GAP), (0, _GAP), (0, 0)][: shown[0].ndim]
        drawn.append(np.concatenate([np.pad(image, gaps, constant_values=1.0) for image in shown], axis=1))
    picture = np.nan_to_num(np.concatenate(drawn)).clip(0, 1)
    return (picture * 255).round().astype(np.uint8)


class _Pictures(ABC):
    """Draw a picture every so many epochs, to ``folder/<name>_epoch0010.png``."""

    def __init__(self, name: str, output_dir: str | os.PathLike[str], interval: int) -> None:
        self.name, self.folder, self.interval = name, Path(output_dir), interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; of several processes the first one draws, and an interval of 0 draws nothing."""
        if self.interval > 0 and process_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Draw, and write."""
        epoch = engine.state.epoch
        picture = self.draw()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.folder / f"{self.name}_epoch{epoch:04d}.png") as file:
            Image.fromarray(picture).save(file, format="PNG")

    @abstractmethod
    def draw(self) -> NDArray[np.uint8]:
        """Return the picture."""


class ReconstructionImages(_Pictures):
    """Originals, reconstructions, absolute differences and, with several levels, the coarsest level alone.

    Attach to the trainer.

    Args:
        autoencoder: the network in training.
        dataset: items with an "image"; pictures are spread evenly over it.
        output_dir: folder for the PNG files.
        interval: epochs between pictures, 0 for none.
        num_images: slices a picture.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        dataset: Any,
        *,
        output_dir: str | os.PathLike[str],
        interval: int = 10,
        num_images: int = 8,
    ) -> None:
        super().__init__("reconstructions", output_dir, interval)
        self.autoencoder: Any = autoencoder
        self.dataset, self.num_images = dataset, num_images

    @torch.no_grad()
    def draw(self) -> NDArray[np.uint8]:
        """Return the picture."""
        picks = evenly_spaced(self.num_images, len(self.dataset))
        device = next(self.autoencoder.parameters()).device
        images = [convert_to_tensor(self.dataset[pick]["image"], track_meta=False).float() for pick in picks]
        images_bcs = torch.stack(images).to(device)
        with eval_mode(self.autoencoder):
            window = (..., *(slice(size) for size in images_bcs.shape[2:]))
            codes = self.autoencoder.encode(images_bcs)
            full_bcs = self.autoencoder.decode(codes)[window]
            rows = [images_bcs, full_bcs, (full_bcs - images_bcs).abs()]
            if len(codes) > 1:
                rows.append(self.autoencoder.decode(codes[:1])[window])
        return image_rows(rows)


class SampleImages(_Pictures):
    """What a prior draws, given the coarser codes and conditions of slices of the data set.

    With an autoencoder the codes are decoded, up to and including the prior's level; without one the grids themselves
    are shown as shades of gray. Attach to the trainer.

    Args:
        prior: the prior in training.
        dataset: items with "codes_0", ..., and "condition" where the prior has one.
        level: the prior's level, 0 = coarsest.
        output_dir: folder for the PNG files.
        interval: epochs between pictures, 0 for none.
        num_images: samples a picture.
        autoencoder: decodes the codes, or None.
        seed: of the draws, the same for every picture, and those of `AncestralSampler` at temperature 1.
    """

    def __init__(
        self,
        prior: nn.Module,
        dataset: Any,
        *,
        level: int,
        output_dir: str | os.PathLike[str],
        interval: int = 10,
        num_images: int = 8,
        autoencoder: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(f"samples_level{level}", output_dir, interval)
        self.prior: Any = prior
        self.autoencoder: Any = autoencoder
        self.dataset, self.level, self.num_images, self.seed = dataset, level, num_images, seed

    @torch.no_grad()
    def draw(self) -> NDArray[np.uint8]:
        """Return the picture."""
        picks = evenly_spaced(self.num_images, len(self.dataset))
        items = [self.dataset[pick] for pick in picks]
        device = next(self.prior.parameters()).device
        coarser = [torch.stack([item[f"codes_{level}"] for item in items]).to(device) for level in range(self.level)]
        condition = torch.stack([item["condition"] for item in items]).to(device) if "condition" in items[0] else None
        grid = tuple(items[0][f"codes_{self.level}"].shape)
        with eval_mode(self.prior):
            codes_bs = self._sample(grid, len(items), coarser, condition)
        if self.autoencoder is None:
            shades = codes_bs[:, None].float() / max(1, int(self.prior.num_codes) - 1)
            factor = max(1, _LARGEST_CELL // (2 * max(grid)))
            return image_rows([torch.nn.functional.interpolate(shades, scale_factor=factor, mode="nearest")])
        decoder_device = next(self.autoencoder.parameters()).device
        codes = [grid_bs.to(decoder_device) for grid_bs in (*coarser, codes_bs)]
        return image_rows([self.autoencoder.decode(codes)])

    def _sample(
        self, grid: tuple[int, ...], batch_size: int, coarser: Sequence[Tensor], condition: Tensor | None
    ) -> Tensor:
        count, num_codes = int(np.prod(grid)), int(self.prior.num_codes)
        noise_bnk = GumbelNoise(self.seed, level=self.level, num_codes=num_codes).rows(
            range(batch_size), first=0, count=count
        )
        walk = self.prior.incremental(grid, batch_size=batch_size, coarser=coarser, condition=condition)
        drawn = []
        for noise_bk in noise_bnk.unbind(1):
            codes_b = (walk.logits().float().cpu() + noise_bk).argmax(1)
            drawn.append(codes_b)
            walk.push(codes_b.to(next(self.prior.parameters()).device))
        return torch.stack(drawn, dim=1).reshape(batch_size, *grid)
