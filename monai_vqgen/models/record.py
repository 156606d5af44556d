"""The record of weights: what stands beside each `.pt` file, so that a folder of weights says how it is used.

model.pt                 model.json                 the autoencoder: architecture, fingerprint, slices, data
model_prior_level0.pt    model_prior_level0.json    a prior: architecture, grid, conditions, sampling settings

Beside `.safetensors` files, as repositories of the Hugging Face Hub have them, all records are in one `config.json`, by
the names of the files without their suffix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai_vqgen
from monai_vqgen.errors import CheckpointError, InputError
from monai_vqgen.files import read_json
from monai_vqgen.networks.architecture import architecture
from monai_vqgen.networks.conditions import ConditionEncoder
from monai_vqgen.transforms.geometry import PLANES
from monai_vqgen.weights import SAFETENSORS

__all__ = [
    "CARD",
    "CONFIG",
    "STATISTICS",
    "ModelRecord",
    "SamplingSettings",
    "autoencoder_record",
    "prior_name",
    "prior_record",
    "read_record",
    "record_path",
    "trained_prior_record",
]

CARD, CONFIG = "README.md", "config.json"
STATISTICS = "healthy.safetensors"  # of `monai_vqgen.anomaly.HealthySlices`, beside weights
FORMAT_VERSION = 1
LARGEST_IMAGE = 2**15  # pixels along an axis
SMALLEST_MM = 1e-3  # of a pixel; a meter is the largest
PERCENTILES = (0.5, 99.5)  # of the volume's foreground, as `extract_slices.json` has them


def prior_name(level: int) -> str:
    """The name, without suffix, of the files of a level's prior."""
    return f"model_prior_level{level}"


class SamplingSettings(NamedTuple):
    """How codes are drawn: one value a level, coarsest first.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: draw from this many of the likeliest codes; None draws from all.
        top_p: draw from the likeliest codes that hold this much probability; None draws from all.
    """

    temperature: tuple[float, ...]
    top_k: tuple[int | None, ...]
    top_p: tuple[float | None, ...]

    @classmethod
    def recorded(cls, sidecars: Sequence[Mapping[str, Any]]) -> SamplingSettings:
        """The settings that priors were validated with, from their records; 1, none and none where they have none."""
        rows = [{"temperature": 1.0, "top_k": None, "top_p": None, **(s.get("sampling") or {})} for s in sidecars]
        return cls(*(tuple(row[name] for row in rows) for name in cls._fields))

    def replaced(self, *, temperature: Any = None, top_k: Any = None, top_p: Any = None) -> SamplingSettings:
        """The same with what is given, a number for all levels or one a level; None keeps a setting.

        Raises:
            InputError: another number of values than levels.

        Examples:
            >>> SamplingSettings((0.8, 1.0), (None, None), (None, None)).replaced(top_k=5).top_k
            (5, 5)
        """
        levels = len(self.temperature)
        changed = {}
        for name, value in {"temperature": temperature, "top_k": top_k, "top_p": top_p}.items():
            if value is None:
                continue
            values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * levels
            if len(values) != levels:
                raise InputError(f"{name} has {len(values)} values for {levels} levels: give one, or one a level")
            changed[name] = values
        return self._replace(**changed)


class ModelRecord(NamedTuple):
    """What is known of an autoencoder's weights beyond the tensors.

    Attributes:
        image_size: pixels of the images it was trained on; empty where unknown.
        plane: of the slices; None where unknown, and for volumes.
        pixel_mm: pixel size in mm; None where unknown.
        percentiles: of a volume's foreground, that become 0 and 1.
        window: (low, high) in the scans' own units that become 0 and 1 in place of percentiles; None for these.
        version: of the bundle, or of the package that trained it.
        license: of the weights; empty where nobody has said.
        data: what it was trained on, in words.
        fingerprint: of the weights (`monai_vqgen.weights.fingerprint`).
    """

    image_size: tuple[int, ...] = ()
    plane: str | None = None
    pixel_mm: float | None = None
    percentiles: tuple[float, float] = PERCENTILES
    window: tuple[float, float] | None = None
    version: str = ""
    license: str = ""
    data: str = ""
    fingerprint: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelRecord:
        """Take the fields that are there; the rest keeps its default.

        Raises:
            InputError: a value that no slices have.
        """
        known = {name: content[name] for name in cls._fields if content.get(name) is not None}
        for name, kind in {"image_size": int, "percentiles": float, "window": float}.items():
            if name in known:
                known[name] = tuple(kind(n) for n in known[name])
        record = cls(**known)
        record._check()
        return record

    def _check(self) -> None:
        """Raise InputError for what no slice can have."""
        low, high = self.percentiles if len(self.percentiles) == 2 else (0.0, 0.0)
        number = isinstance(self.pixel_mm, int | float) and not isinstance(self.pixel_mm, bool)
        right = {
            "image_size": all(0 < size <= LARGEST_IMAGE for size in self.image_size),
            "plane": self.plane is None or (isinstance(self.plane, str) and self.plane in PLANES),
            "pixel_mm": self.pixel_mm is None or (number and SMALLEST_MM <= self.pixel_mm <= 1 / SMALLEST_MM),
            "percentiles": 0 <= low < high <= 100,
            "window": self.window is None or _is_window(self.window),
            **{name: isinstance(getattr(self, name), str) for name in ("version", "license", "data", "fingerprint")},
        }
        if wrong := next((name for name, fine in right.items() if not fine), None):
            raise InputError(f"{wrong} is {str(getattr(self, wrong))[:100]!r}, which no slices have")


def _is_window(window: Sequence[float]) -> bool:
    return len(window) == 2 and all(map(math.isfinite, window)) and window[0] < window[1]


def autoencoder_record(network: Any, dataset_dir: str | Path | None = None, **more: Any) -> dict[str, Any]:
    """What `model.json` says of an autoencoder; its fingerprint is added when the weights are saved.

    Args:
        network: records its constructor's arguments.
        dataset_dir: the slices it is trained on; plane, pixel size, image size and counts come from their
            `datalist.json`, as far as there is one.
        more: fields of `ModelRecord` that are known better.
    """
    path = None if dataset_dir is None else Path(dataset_dir) / "datalist.json"
    listed = read_json(path) if path is not None and path.is_file() else {}
    known = {
        name: listed[name] for name in ("image_size", "plane", "pixel_mm", "percentiles", "window") if listed.get(name)
    }
    training = listed.get("training", [])
    subjects = {item.get("subject") for item in training} - {None}
    if training:
        whose = f" of {len(subjects)} subjects" if subjects else ""
        known["data"] = f"{len(training)} training slices{whose}. {listed.get('source', '')}".strip()
    content = {"version": monai_vqgen.__version__, **known, **more}
    try:
        fields = ModelRecord.from_json(content)._asdict()
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path or 'the record'}: {error}; extract the slices again") from error
    del fields["fingerprint"]
    return {"format_version": FORMAT_VERSION, "architecture": architecture(network), **_as_json(fields)}


def prior_record(
    prior: Any,
    level: int,
    *,
    grid: Sequence[int],
    autoencoder: ModelRecord,
    condition: ConditionEncoder | None,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the JSON beside a prior's weights says.

    Args:
        prior: records its constructor's arguments.
        level: 0 is the coarsest.
        grid: sizes of the level's grid.
        autoencoder: that made the codes.
        condition: how conditions become vectors; None for no conditions.
        sampling: temperature, top_k and top_p of this level, once validated.
    """
    return {
        "format_version": FORMAT_VERSION,
        "architecture": architecture(prior),
        "level": level,
        "grid": list(grid),
        "num_codes": prior.num_codes,
        "coarser": list(prior.coarser_codes),
        "autoencoder_fingerprint": autoencoder.fingerprint,
        "image_size": list(autoencoder.image_size),
        "plane": autoencoder.plane,
        "pixel_mm": autoencoder.pixel_mm,
        "condition": None if condition is None else condition.to_dict(),
        "sampling": {name: value for name, value in (sampling or {}).items() if value is not None},
    }


def trained_prior_record(
    prior: Any, store: Any, level: int, *, condition: ConditionEncoder, sampling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`prior_record` of a prior in training, from its `CodeStore`."""
    geometry = store.geometry
    source = ModelRecord(store.image_size, geometry.plane, geometry.pixel_mm, fingerprint=store.fingerprint)
    return prior_record(
        prior, level, grid=store.grids[level], autoencoder=source, condition=condition, sampling=sampling
    )


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}


def record_path(weights: Path) -> Path:
    """Where the record of a file of weights is."""
    return weights.with_name(CONFIG) if weights.suffix == SAFETENSORS else weights.with_suffix(".json")


def read_record(weights: Path, *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read the record of a file of weights; empty where there is none, as with weights of version 0.1.

    Raises:
        CheckpointError: it is damaged, lacks a needed key, or is of a newer format.
    """
    path = record_path(weights)
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        if path.name == CONFIG and not (content := dict(content.get(weights.stem) or {})):
            return {}
        version = int(content.get("format_version", 0))
        for key in needed:
            content[key]
        ModelRecord.from_json(content)
        dict(content.get("architecture", {}))
        if not all(isinstance(content.get(key, ""), str) for key in ("fingerprint", "autoencoder_fingerprint")):
            raise TypeError("a fingerprint is no text")
        if not all(isinstance(content.get(key) or {}, Mapping) for key in ("sampling", "condition")):
            raise TypeError("sampling or condition is no dictionary")
        if not isinstance(content.get("replaces", []), list):
            raise TypeError("replaces is no list")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy it again, or train again") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of format {version}, and this version of monai_vqgen reads up to {FORMAT_VERSION}: upgrade it"
        )
    return content
