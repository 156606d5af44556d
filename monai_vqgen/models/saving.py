"""A trained model on disk, weights and records, and in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from monai_vqgen.data.processes import process_rank
from monai_vqgen.errors import CodesMismatchError
from monai_vqgen.files import claim_place, clean, publish, write_bytes, write_json
from monai_vqgen.models.loading import load_autoencoder
from monai_vqgen.models.record import CARD, CONFIG, autoencoder_record, prior_name, prior_record
from monai_vqgen.weights import SAFETENSORS, fingerprint, save_weights

__all__ = ["describe", "hand_down_priors", "saved_files", "write_model", "write_pretrained"]

_Part = tuple[str, Any, dict[str, Any]]  # name of the files without suffix, network, record

_OURS = re.compile(rf"(model|{prior_name(0)[:-1]}\d+)\.(pt|json|safetensors)")


def saved_files(folder: Path) -> list[str]:
    """The weights and records of a model in a folder, none where it is missing."""
    return sorted(path.name for path in folder.glob("model*") if _OURS.fullmatch(path.name))


def write_model(model: Any, folder: Path) -> Path:
    """Write `model.pt`, the priors and their records, which carry their fingerprints; all replace earlier ones at once.

    Returns:
        The folder.
    """
    files = ["model.pt", "model.json"]
    clean(folder, files)
    place = claim_place(folder, [*files, *saved_files(folder)])
    _write_parts(_parts(model), place)
    return publish(place)


def write_pretrained(model: Any, folder: Path, card: str) -> Path:
    """Write a repository for the hub: `config.json`, `.safetensors` files, and a card unless the folder has one.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = ["model.safetensors", CONFIG]
    clean(folder, files)
    place = claim_place(folder, [*files, *saved_files(folder)])
    parts = _parts(model)
    for name, module, _ in parts:
        save_weights(module, place / f"{name}{SAFETENSORS}")
    records = {name: record for name, _, record in parts}
    write_json(place / CONFIG, {"library_name": "monai_vqgen", **records}, sealed=True)
    if not (folder / CARD).exists():
        write_bytes(place / CARD, card.encode())
    return publish(place)


def hand_down_priors(model: Any, weights: str | Path) -> None:
    """Write the priors of a model beside weights whose decoder alone was trained further (`DecoderObjective`).

    Of several processes the first writes.

    Args:
        model: a `TrainedModel` with the priors.
        weights: `model.pt` of the further training, beside its record.

    Raises:
        CodesMismatchError: the encoder or the codebooks changed, so that the priors do not fit any more.
        CheckpointError: the weights are missing or damaged.
    """
    if process_rank() > 0:
        return
    path = Path(weights)
    autoencoder, record = load_autoencoder(path)
    ours, theirs = model.autoencoder.state_dict(), autoencoder.state_dict()
    decoder = f"upsamplers.{model.autoencoder.num_levels - 1}."  # coarser ones are part of how finer codes are found
    for name, value in ours.items():
        if not name.startswith(decoder) and not torch.equal(value.cpu(), theirs.get(name, value.new_empty(0)).cpu()):
            raise CodesMismatchError(
                f"{path} writes other codes than the priors know ({name} differs): train them again"
            )
    _write_parts(_prior_parts(model, record), path.parent)


def _write_parts(parts: list[_Part], folder: Path) -> None:
    for name, module, record in parts:
        save_weights(module, folder / f"{name}.pt")
        write_json(folder / f"{name}.json", record, sealed=True)


def _parts(model: Any) -> list[_Part]:
    known = model.record._asdict()
    own = known.pop("fingerprint")
    record = {**autoencoder_record(model.autoencoder, **known), "fingerprint": own}
    return [("model", model.autoencoder, record), *_prior_parts(model, model.record)]


def _prior_parts(model: Any, record: Any) -> list[_Part]:
    parts = list[_Part]()
    for level, prior in enumerate(model.priors):
        settings = {name: values[level] for name, values in model.settings._asdict().items()}
        sidecar = prior_record(
            prior,
            level,
            grid=model.grids[level],
            autoencoder=record,
            condition=model.condition,
            sampling=settings,
        )
        parts.append((prior_name(level), prior, {**sidecar, "fingerprint": fingerprint(prior)}))
    return parts


def describe(model: Any) -> str:
    """What a model is, trained on what, and how many weights it has."""
    record, grids = model.record, [" x ".join(map(str, grid)) for grid in model.grids]
    size = f"{' x '.join(map(str, record.image_size))} pixels" if record.image_size else "any size"
    spacing = f" of {record.pixel_mm:g} mm" if record.pixel_mm else ""
    solid = model.autoencoder.spatial_dims == 3
    plane = "volumes" if solid else f"{record.plane} slices" if record.plane else "images"
    sizes = ", ".join(map(str, model.autoencoder.codebook_sizes))
    lines = [
        f"{plane}: {size}{spacing}",
        f"codes: {', '.join(grids) or 'grids by image size'} of {sizes}",
        f"weights: {_weights(model.autoencoder):,} (autoencoder), {sum(map(_weights, model.priors)):,} (priors)",
    ]
    if model.condition is not None:
        ranges = [f"{name} {low:g} to {high:g}" for name, (low, high) in model.condition.continuous.items()]
        ranges += [f"{name} {' or '.join(values)}" for name, values in model.condition.categorical.items()]
        lines.append(f"conditions: {', '.join(ranges)}")
    if model.priors:
        chosen = {name: values for name, values in model.settings._asdict().items() if any(values)}
        lines.append("sampling: " + ", ".join(f"{name} {', '.join(map(str, v))}" for name, v in chosen.items()))
    if record.data:
        lines.append(f"trained on: {record.data}")
    about = [f"version {record.version}" if record.version else "", record.license and f"license {record.license}"]
    lines.append(", ".join([*filter(None, about), f"fingerprint {record.fingerprint[:12]}"]))
    return "TrainedModel(\n    " + "\n    ".join(lines) + "\n)"


def _weights(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]
