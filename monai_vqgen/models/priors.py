"""Trained priors and the autoencoder whose codes they speak, checked against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monai_vqgen.errors import CheckpointError, CodesMismatchError
from monai_vqgen.networks import ConditionEncoder, HierarchicalVQVAE
from monai_vqgen.networks.priors import Prior
from monai_vqgen.weights import fingerprint, load_weights

__all__ = ["TrainedPriors", "condition_dim", "load_autoencoder", "load_priors"]

_SLICES = ("image_size", "plane", "pixel_mm")  # what the sidecars say of the slices; all may be missing


class TrainedPriors(NamedTuple):
    """One prior a level, coarsest first, and what their sidecar files say of all of them."""

    networks: tuple[Prior, ...]
    grids: tuple[tuple[int, ...], ...]
    condition: ConditionEncoder | None
    """How a condition becomes a vector; None for unconditional priors."""
    autoencoder_fingerprint: str
    image_size: tuple[int, ...] = ()
    """Pixels of the slices that the codes were made of; decoded samples are cropped to it. Empty where unknown."""
    plane: str | None = None
    pixel_mm: float | None = None


def load_autoencoder(
    network: HierarchicalVQVAE, path: str | Path, *, device: torch.device | str = "cpu"
) -> HierarchicalVQVAE:
    """Load an autoencoder's weights, in evaluation mode, on a device.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another architecture.
    """
    load_weights(network, path)
    return network.to(device)


def _sidecar(priors_dir: Path, level: int) -> dict[str, Any]:
    path = priors_dir / f"model_prior_level{level}.json"
    try:
        content = json.loads(path.read_text())
        for key in ("grid", "num_codes", "autoencoder_fingerprint"):
            content[key]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no prior of level {level} in {priors_dir} ({path.name} is missing): train it first with "
            f"`python -m monai.bundle run training --config_file bundle/configs/train_prior.json --level {level}`, "
            "or give its folder as priors_dir"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): train the prior of level {level} again") from error
    return content


def _encoder(spec: Mapping[str, Any] | None) -> ConditionEncoder | None:
    encoder = ConditionEncoder.from_dict(spec) if spec else None
    return encoder if encoder is not None and encoder.dim > 0 else None


def condition_dim(priors_dir: str | Path) -> int:
    """Length of the condition vector that the priors of a folder were trained with, 0 for none.

    Raises:
        CheckpointError: there is no prior of level 0.
    """
    encoder = _encoder(_sidecar(Path(priors_dir), 0).get("condition"))
    return encoder.dim if encoder else 0


def load_priors(
    prior_defs: Sequence[Prior],
    priors_dir: str | Path,
    *,
    autoencoder: HierarchicalVQVAE,
    device: torch.device | str = "cpu",
) -> TrainedPriors:
    """Load `model_prior_level0.pt`, `..1.pt` into priors of the same architecture.

    Args:
        prior_defs: priors, coarsest level first, at least one a level of the autoencoder.
        priors_dir: folder of the weights and their sidecar JSON files.
        autoencoder: with its trained weights; its fingerprint must be the one the priors learned from.
        device: where the priors go.

    Raises:
        CheckpointError: a level's file is missing, damaged or of another architecture.
        CodesMismatchError: a prior was trained on the codes of another autoencoder.
    """
    folder, levels = Path(priors_dir), len(autoencoder.codebook_sizes)
    if len(prior_defs) < levels:
        raise CheckpointError(
            f"the autoencoder has {levels} levels, the config defines {len(prior_defs)} priors: give one prior a level"
        )
    sidecars = [_sidecar(folder, level) for level in range(levels)]
    mine = fingerprint(autoencoder)
    for level, sidecar in enumerate(sidecars):
        theirs = sidecar["autoencoder_fingerprint"]
        if theirs != mine:
            raise CodesMismatchError(
                f"the prior of level {level} in {folder} was trained on the codes of another autoencoder "
                f"(fingerprint {theirs[:12]}..., this one's is {mine[:12]}...): give the model.pt that made its codes, "
                "or extract codes and train the priors again"
            )
    for key in ("condition", *_SLICES):
        if any(sidecar.get(key) != sidecars[0].get(key) for sidecar in sidecars):
            raise CheckpointError(f"the priors in {folder} were trained with a different {key}: train them alike")
    for level, prior in enumerate(prior_defs[:levels]):
        load_weights(prior, folder / f"model_prior_level{level}.pt").to(device)
    grids = tuple(tuple(int(n) for n in sidecar["grid"]) for sidecar in sidecars)
    image_size = tuple(int(n) for n in sidecars[0].get("image_size") or ())
    if image_size and tuple(autoencoder.grids(image_size)) != grids:
        raise CheckpointError(
            f"the priors in {folder} are of grids {list(grids)}, which is not what slices of {image_size} pixels "
            "become: train them again"
        )
    return TrainedPriors(
        networks=tuple(prior_defs[:levels]),
        grids=grids,
        condition=_encoder(sidecars[0].get("condition")),
        autoencoder_fingerprint=mine,
        image_size=image_size,
        plane=sidecars[0].get("plane"),
        pixel_mm=sidecars[0].get("pixel_mm"),
    )


def of_model(model: Any) -> TrainedPriors | None:
    """The priors of a `TrainedModel`."""
    if not model.priors:
        return None
    record = model.record
    where = (record.image_size, record.plane, record.pixel_mm)
    return TrainedPriors(model.priors, model.grids, model.condition, record.fingerprint, *where)
