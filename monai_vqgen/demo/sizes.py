"""How large a whole run is: one YAML a size, each of its sections the options of a stage's config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import monai_vqgen
from monai_vqgen.bundles import bundle_root
from monai_vqgen.data.slices.sources import ScanRecord
from monai_vqgen.data.slices.splits import read_split
from monai_vqgen.errors import InputError

__all__ = ["Size", "fast_bfloat16", "read_size", "size_names", "with_split"]

CONFIGS = {
    "slices": ("extract_slices",),
    "autoencoder": ("train",),
    "codes": ("extract_codes",),
    "priors": ("train_prior",),
    "sampling": ("sample", "evaluate"),
    "evaluation": ("evaluate",),
}
"""The configs whose options each section gives."""
OF_THE_RUN = frozenset(
    ["bundle_root", "dataset_dir", "level", "model", "output_dir", "overwrite", "priors_dir", "resume", "seed"]
)
"""Options that a run sets itself."""
PHANTOM_OPTIONS = frozenset(["subjects"])


class Size(NamedTuple):
    """All sizes of a run; options by name, as on the command line of their config.

    Attributes:
        name: the file's, without its ending.
        slices: of `extract_slices.json`.
        autoencoder: of `train.json`.
        codes: of `extract_codes.json`.
        priors: of `train_prior.json`, one a level, coarsest first.
        sampling: of `sample.json` and `evaluate.json`.
        evaluation: of `evaluate.json`.
        phantoms: `subjects`, how many are made where there are no scans.
    """

    name: str
    slices: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    codes: Mapping[str, Any]
    priors: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    phantoms: Mapping[str, Any]

    def for_this_machine(self) -> Size:
        """The same without bfloat16 where that is slow."""
        if fast_bfloat16():
            return self
        autoencoder, *priors = ({**o, "amp": False} if o.get("amp") else o for o in (self.autoencoder, *self.priors))
        return self._replace(autoencoder=autoencoder, priors=tuple(priors))


def read_size(size: str | Path) -> Size:
    """Read a size.

    Args:
        size: a name of `size_names`, or the path of a YAML file, also one that `plan` has written.

    Raises:
        InputError: no such size, an unreadable file, or a section or option that no stage has; the message names file
            and key.
    """
    path = Path(size) if str(size).endswith((".yaml", ".yml")) else _folder() / f"{size}.yaml"
    if not path.is_file():
        raise InputError(f"size {str(size)!r} is unknown; choose one of {', '.join(size_names())}, or give a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold sections with options, such as 'slices: {{image_size: 64}}'")
    if "network_def" in content:
        content = _by_section(content)
    unknown = sorted(str(name) for name in content if name not in {*CONFIGS, "phantoms"})
    if unknown:
        raise InputError(f"{path}: unknown section {unknown[0]!r}; sections are {', '.join(CONFIGS)}, phantoms")
    priors = content.get("priors")
    if not isinstance(priors, Sequence) or isinstance(priors, str) or not priors:
        raise InputError(f"{path}: 'priors' must be a list with the options of each level's prior, coarsest first")
    sections = {name: _options(path, name, content.get(name)) for name in (*CONFIGS, "phantoms") if name != "priors"}
    found = Size(path.stem, priors=tuple(_options(path, "priors", prior) for prior in priors), **sections)
    whole: Any = found.autoencoder.get("network_def") or {}
    strides = found.autoencoder.get("network_def::strides", whole.get("strides"))
    if strides is not None and len(strides) != len(found.priors):
        raise InputError(
            f"{path}: {len(found.priors)} priors for the {len(strides)} levels of network_def strides {strides}: give "
            "one prior a level"
        )
    return found


def size_names() -> list[str]:
    """The sizes that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def with_split(size: Size, scans: Sequence[ScanRecord]) -> Size:
    """The size with its split file, if it names one, found in the repository and checked against the scans.

    Raises:
        InputError: the split file is not there.
        DatalistError: the scans are not those of the split.
    """
    if "split_file" not in size.slices:
        return size
    path = bundle_root().parent / size.slices["split_file"]
    if not path.is_file():
        raise InputError(f"{path} is missing: work in a clone of the repository, or choose another size")
    read_split(path, [scan.subject for scan in scans])
    return size._replace(slices={**size.slices, "split_file": str(path)})


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a GPU, or a CPU with instructions for it (else 4x slower)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    # torch 2.10 cannot tell, and float32 is never wrong
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _folder() -> Path:
    """In an installed package, else in the repository, as `bundle_root`."""
    package = Path(monai_vqgen.__file__).resolve().parent
    packed = package / "_sizes"
    return packed if packed.is_dir() else package.parent / "configs" / "sizes"


def _by_section(content: Mapping[str, Any]) -> dict[str, Any]:
    """The flat options of a plan (`monai_vqgen.demo.plan`): each belongs to the first stage that has it."""
    sections: dict[str, Any] = {}
    known = {
        name: json.loads((bundle_root() / "configs" / f"{files[0]}.json").read_text())
        for name, files in CONFIGS.items()
    }
    for name, value in content.items():
        home = next((section for section in ("slices", "autoencoder", "codes") if name in known[section]), None)
        sections |= {home: {**sections.get(home, {}), name: value}} if home else {name: value}
    return sections


def _options(path: Path, section: str, content: object) -> dict[str, Any]:
    """A section as options by name; what is nested in it gets MONAI's `::`."""
    if not isinstance(content or {}, Mapping):
        raise InputError(f"{path}: {section!r} must give values by name, not {content!r}")
    options, folder = _flat(content or {}), bundle_root() / "configs"  # type: ignore[arg-type]
    options_of_configs = [json.loads((folder / f"{name}.json").read_text()) for name in CONFIGS.get(section, ())]
    for name in options:
        top = name.partition("::")[0]
        if top in OF_THE_RUN:
            raise InputError(f"{path}: {section} sets {top!r}, which every run sets itself: remove it")
        for known in options_of_configs or [PHANTOM_OPTIONS]:
            if top not in known:
                raise InputError(f"{path}: {section} has no option {top!r}; its options are {', '.join(sorted(known))}")
    return options


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values by their path; whole objects, which have a `_target_`, stay whole."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and "_target_" not in value:
            flat.update(_flat(value, f"{above}{name}::"))
        else:
            flat[f"{above}{name}"] = value
    return flat
