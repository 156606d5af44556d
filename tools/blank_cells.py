"""A code for blank cells in weights that were trained without one.

Encoder and codebooks stay as they were. The decoder learns to do without the codes that are gone, and the priors get a
row for the new one, and are then to be trained on, which `train_prior.json --start_from FOLDER` does.

Shape suffixes: d code dimension, k codebook size, n vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from monai_vqgen.data import load_datalist
from monai_vqgen.engines import DecoderObjective, warmup_cosine
from monai_vqgen.errors import InputError
from monai_vqgen.models import TrainedModel
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.networks.architecture import architecture
from monai_vqgen.transforms import LoadSlice
from monai_vqgen.weights import fingerprint

__all__ = ["add_blank_cells"]

NUM_SLICES = 480  # evenly spaced in the training slices, from which the vectors come
BATCH_SIZE, PEAK_RATE = 8, 6e-4  # of the decoder's training; the rate is below that of training from nothing


def add_blank_cells(
    slices: str | Path,
    output: str | Path,
    *,
    model: str = "faithful",
    threshold: float = 0.01,
    margin: Sequence[int] = (1, 0),
    steps: int = 5000,
) -> TrainedModel:
    """Write a model like another one, with a code for cells without a pixel above a threshold.

    The vector of the new code is the mean of those that blank cells had, and the priors' rows for it are the means of
    the rows of their codes.

    Args:
        slices: a folder of `extract_slices`.
        output: a folder for the weights.
        model: of `TrainedModel.from_bundle`.
        threshold: intensity up to which a pixel is background.
        margin: cells around content that keep their codes, one number a level.
        steps: of the decoder's training, with 8 slices each.

    Raises:
        InputError: the model has such a code, or the slices have no blank cells.
    """
    old = TrainedModel.from_bundle(model)
    given = architecture(old.autoencoder)
    if given.get("blank_threshold") is not None:
        raise InputError(f"{model} has a code for blank cells")
    given = {**given, "blank_threshold": threshold, "blank_margin": list(margin)}
    if given.get("quantizers") is not None:
        given["quantizers"] = copy.deepcopy(list(old.autoencoder.quantizers))
    network = type(old.autoencoder)(**{name: value for name, value in given.items() if name != "_target_"})
    state = {_renamed(name): value for name, value in old.autoencoder.state_dict().items()}
    network.load_state_dict({**network.state_dict(), **state})  # the new vectors apart, which are made below
    counts = _codes_of_blank_cells(old, network.eval(), slices)
    books = old.autoencoder.codebooks()
    for level, (quantizer, share_k, book_kd) in enumerate(zip(network.quantizers, counts, books, strict=True)):
        if not share_k.sum():
            raise InputError(f"{slices} has no blank cells at level {level}: there is nothing to gain")
        quantizer.blank_d.data.copy_(share_k / share_k.sum() @ book_kd)
    _train_decoder(network, slices, steps, mirrored=old.record.plane != "sagittal")
    priors = [_widened(prior, counts) for prior in old.priors]
    loaded = LoadedPriors(tuple(priors), old.grids, old.condition, old.settings)
    record = old.record._replace(fingerprint=fingerprint(network))
    new = TrainedModel(network, loaded, record=record)
    new.save(output)
    return new


def _renamed(name: str) -> str:
    """`quantizers.0.embeddings_kd` as the same within `BlankCells`."""
    head, number, *rest = name.split(".")
    return ".".join([head, number, "quantizer", *rest]) if head == "quantizers" else name


@torch.inference_mode()
def _codes_of_blank_cells(old: TrainedModel, network: Any, slices: str | Path) -> list[Tensor]:
    """How often each of a level's codes ``(k,)`` stands in a blank cell."""
    items = load_datalist(slices, "training")
    images = [LoadSlice()(item["image"]).as_tensor() for item in items[:: max(1, len(items) // NUM_SLICES)]]
    counts = [torch.zeros(size) for size in old.autoencoder.codebook_sizes]
    for batch in torch.stack(images).split(old.batch_size):
        for count_k, before, after in zip(counts, old.encode(batch), network.encode(batch), strict=True):
            blank = after == len(count_k)
            count_k += torch.bincount(before[blank], minlength=len(count_k))
    return counts


def _train_decoder(network: Any, slices: str | Path, steps: int, *, mirrored: bool) -> None:
    """Squared error, Adam with a warm-up and a cosine; bfloat16 where a processor computes it."""
    torch.manual_seed(0)
    images = torch.stack([LoadSlice()(item["image"]).as_tensor() for item in load_datalist(slices, "training")])
    objective = DecoderObjective(network, amp=True).train()
    learned = [value for value in objective.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(learned, PEAK_RATE)
    schedule = warmup_cosine(optimizer, steps)
    for step in tqdm(range(steps), desc="training the decoder"):
        batch = images[torch.randint(len(images), (BATCH_SIZE,))]
        loss = objective(batch.flip(-1) if mirrored and step % 2 else batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.requires_grad_(True).eval()


def _widened(prior: Any, counts: list[Tensor]) -> Any:
    """A prior with a row more for every codebook that it knows."""
    given = {name: value for name, value in architecture(prior).items() if name != "_target_"}
    level, sizes = len(prior.coarser_codes), [len(count) + 1 for count in counts]
    wider = type(prior)(**{**given, "num_codes": sizes[level], "coarser_codes": sizes[:level]})
    state, shapes = prior.state_dict(), {name: value.shape for name, value in wider.state_dict().items()}
    weights = prior.code_weights()
    tables = [(weights.logits.weight, level), (weights.embedding.weight, level)]
    if weights.logits.bias is not None:
        tables.append((weights.logits.bias, level))
    tables += [(table.weight, coarser) for coarser, table in enumerate(weights.coarser)]
    known = {tensor.data_ptr(): counts[which] for tensor, which in tables}
    for name, value in prior.state_dict().items():
        if value.shape != shapes[name]:
            share_k = known[value.data_ptr()]
            mean = torch.tensordot(share_k / share_k.sum(), value, 1)
            state[name] = torch.cat([value, mean[None]])
    wider.load_state_dict(state)
    return wider.eval()
