"""New slices as MONAI's inferers give predictions: the numbers of the samples go in, their images come out.

Shape legend: b batch, c channels, s spatial axes (2 or 3), f condition features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.errors import InputError
from monai_vqgen.inferers.ancestral import AncestralSampler
from monai_vqgen.inferers.threads import finished_time, one_thread
from monai_vqgen.networks.priors import Prior

__all__ = ["SliceSampler", "crop"]


class SliceSampler(Inferer):
    """Draw the slices whose numbers are asked for.

    ::

        numbers, condition -> priors, coarse to fine -> codes -> autoencoder -> images in [0, 1]

    A slice depends on the seed, its own number and its condition alone: not on the batch, nor on how many processes
    share the work (see `AncestralSampler`).

    Args:
        priors: one a level, coarsest first.
        grids: sizes of each level's grid, coarsest first.
        image_size: pixels of the slices that the priors learned from; images are cropped to it, where sizes that do
            not divide were padded. Empty crops nothing.
        seed: of the samples.
        temperature: divides the logits, of all levels or one a level, coarsest first.
        top_k: draw from the k likeliest codes only.
        top_p: draw from the likeliest codes that hold this much probability.
        progress: whether a bar shows the codes drawn.

    Attributes:
        seconds: time of drawing codes so far, decoding left out.
        codes: those of the last call, one grid a level, coarsest first.

    Raises:
        InputError: an argument out of its range; at a call, numbers that do not follow one another.
    """

    def __init__(
        self,
        priors: Sequence[Prior],
        grids: Sequence[Sequence[int]],
        *,
        image_size: Sequence[int] = (),
        seed: int = 0,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: bool = True,
    ) -> None:
        self.sampler = AncestralSampler(priors, temperature=temperature, top_k=top_k, top_p=top_p)
        self.grids, self.image_size, self.seed, self.progress = grids, tuple(image_size), seed, progress
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.seconds = 0.0
        self.codes: tuple[Tensor, ...] = ()

    def options(self) -> dict[str, Any]:
        """How samples are drawn, for their records."""
        return {"seed": self.seed, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def __call__(
        self, inputs: Tensor, network: Any, *args: Any, condition: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the images `(b, c, *s)` of the samples numbered `inputs` `(b,)`, on the network's device.

        Args:
            inputs: numbers that follow one another, int64.
            network: the autoencoder, which decodes; keeps the contract of `HierarchicalVQVAE`.
            args: not used.
            condition: `(b, f)`, where the priors take one.
            kwargs: not used.
        """
        numbers = inputs.tolist()
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise InputError(f"samples {numbers} were asked for at once: give numbers that follow one another")
        device = next(network.parameters()).device
        start = finished_time(device)
        self.sampler.batch_size = len(numbers)
        with one_thread(), tqdm(desc="sampling", unit="code", disable=not self.progress, leave=False) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            self.codes = self.sampler.sample(
                self.grids,
                num_samples=len(numbers),
                seed=self.seed,
                first_sample=numbers[0],
                condition=condition,
                progress=advance,
            )
        self.seconds += finished_time(device) - start
        with torch.no_grad():
            return crop(network.decode(self.codes).clamp(0, 1), self.image_size)


def crop(images_bcs: Tensor, size: Sequence[int]) -> Tensor:
    """The first pixels of each axis: sizes that do not divide were padded at the end. An empty size crops nothing."""
    for axis, length in enumerate(size, start=2):
        images_bcs = images_bcs.narrow(axis, 0, length)
    return images_bcs
