"""What priors know of the codes: bits a code, and how much of the embeddings they explain where there is something.

Shape suffixes: b batch, c channels, d code dimension, k codebook size, n slices, s spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.data.slices.datalists import evenly_spaced
from monai_vqgen.engines import encode_records
from monai_vqgen.metrics import PositionHistogram, bits_per_code, uniform_bits_per_code
from monai_vqgen.models import TrainedModel

__all__ = ["inside_figures", "prior_figures"]

CONTENT = 0.01  # a pixel above it is no background


def prior_figures(
    model: TrainedModel,
    *,
    test_codes: Sequence[Tensor],
    training_codes: Sequence[Tensor],
    mirrored_codes: Sequence[Tensor],
    records: Sequence[Mapping[str, Any]],
    training_records: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Bits per code of each prior on the test slices, beside the uniform's and the per-position histogram's.

    Beside them stand the bits per code of as many training slices, evenly chosen: how much the priors have overfitted.

    The histogram is fitted twice, to the training slices and to these with their mirror images (on which the priors
    may have been trained as well); the lower of the two figures is reported, the stronger baseline.
    """
    some = evenly_spaced(len(records), len(training_records))
    test_bits = _bits_of_priors(model, test_codes, records)
    training_bits = _bits_of_priors(model, [grid[some] for grid in training_codes], [training_records[i] for i in some])
    figures = []
    for level, size in enumerate(prior.num_codes for prior in model.priors):
        seen = (training_codes[level], torch.cat([training_codes[level], mirrored_codes[level]]))
        histograms = [PositionHistogram(size).fit(codes).bits_per_code(test_codes[level]) for codes in seen]
        figures.append(
            {
                "level": level,
                "bits_per_code": test_bits[level],
                "training_bits_per_code": training_bits[level],
                "uniform_bits_per_code": uniform_bits_per_code(size),
                "histogram_bits_per_code": min(histograms),
            }
        )
    return figures


def _bits_of_priors(model: TrainedModel, codes: Sequence[Tensor], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean bits per code of each level's prior on these slices."""
    sampler, device, size = model.sampler(), model.device, model.batch_size
    condition_nf = encode_records(model.condition, records) if model.condition is not None else None
    parts = []
    for start in tqdm(range(0, len(records), size), desc="scoring priors", unit="batch", leave=False):
        rows = slice(start, start + size)
        condition = condition_nf[rows].to(device) if condition_nf is not None else None
        parts.append(sampler.log_prob([grid[rows].to(device) for grid in codes], condition=condition))
    return [
        bits_per_code(torch.cat([x.cpu() for x in log_prob]), codes[level][0].numel())
        for level, log_prob in enumerate(zip(*parts, strict=True))
    ]


def inside_figures(model: TrainedModel, test: Dataset, codes: Sequence[Tensor]) -> list[dict[str, Any]]:
    """How well each prior predicts the codes of cells with content, given the true codes before them.

    Most cells of a slice lie outside the head, where codes are easily guessed, so that the mean over a grid hides what
    a prior knows of the anatomy. Speckle shows in `explained_variance`: one minus the squared distance of embeddings to
    the mean that the prior expects, over their squared distance to their overall mean. At 0 it knows nothing.

    Args:
        model: with priors.
        test: slices ``(c, *s)``, background below 0.01.
        codes: their grids ``(n, *grid)`` a level, coarsest first.

    Returns:
        `inside_bits_per_code` and `explained_variance` a level; None where no slice has content, or all codes are one.
    """
    sums = [_Inside(book_kd) for book_kd in model.autoencoder.codebooks()]
    condition_nf = encode_records(model.condition, test.data) if model.condition is not None else None
    for start in tqdm(range(0, len(test), model.batch_size), desc="predicting codes", unit="batch", leave=False):
        rows = slice(start, start + model.batch_size)
        images_bcs = torch.stack(
            [torch.as_tensor(test[i]["image"]).as_subclass(Tensor) for i in range(start, min(rows.stop, len(test)))]
        )
        grids = [grid[rows].to(model.device) for grid in codes]
        for level, (prior, found) in enumerate(zip(model.priors, sums, strict=True)):
            given = None if condition_nf is None or not prior.condition_dim else condition_nf[rows].to(model.device)
            with torch.inference_mode():
                logits_bks = prior(grids[level], grids[:level], given).float()
            stride = model.autoencoder.strides[level]
            inside_bs = _with_content(images_bcs.to(model.device), grids[level].shape[1:], stride)
            found.add(logits_bks, grids[level], inside_bs)
    return [found.figures() for found in sums]


def _with_content(images_bcs: Tensor, grid: Sequence[int], stride: int) -> Tensor:
    """Which cells ``(b, *grid)`` hold a pixel that is no background; the last of an axis may reach beyond the image."""
    content_b1s = (images_bcs > CONTENT).any(1, keepdim=True).float()
    sizes = [count * stride for count in grid]
    missing = [whole - size for whole, size in zip(sizes, images_bcs.shape[2:], strict=True)]
    padded_b1s = F.pad(content_b1s, [width for size in reversed(missing) for width in (0, size)])
    pool = F.max_pool2d if len(grid) == 2 else F.max_pool3d
    return pool(padded_b1s, stride)[:, 0] > 0


class _Inside:
    """Sums over the cells with content of one level, in float64."""

    def __init__(self, book_kd: Tensor) -> None:
        self.book_kd = book_kd.double()
        self.cells, self.nats, self.missed, self.squares = 0, 0.0, 0.0, 0.0
        self.total_d = torch.zeros_like(self.book_kd[0])

    def add(self, logits_bks: Tensor, codes_bs: Tensor, inside_bs: Tensor) -> None:
        log_prob_nk = logits_bks.movedim(1, -1)[inside_bs].double().log_softmax(1)
        codes_n = codes_bs[inside_bs]
        actual_nd = self.book_kd[codes_n]
        self.cells += len(codes_n)
        self.nats -= float(log_prob_nk.gather(1, codes_n[:, None]).sum())
        self.missed += float((actual_nd - log_prob_nk.exp() @ self.book_kd).square().sum())
        self.squares += float(actual_nd.square().sum())
        self.total_d += actual_nd.sum(0)

    def figures(self) -> dict[str, Any]:
        if not self.cells:
            return {"inside_bits_per_code": None, "explained_variance": None}
        variance = self.squares - float(self.total_d.square().sum()) / self.cells
        explained = 1 - self.missed / variance if variance > 0 else None
        return {"inside_bits_per_code": self.nats / self.cells / math.log(2), "explained_variance": explained}
