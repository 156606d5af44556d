"""Where `inference.json` writes: names that mirror the input's, known before the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data.folder_layout import FolderLayoutBase

from monai_vqgen.errors import DatalistError

__all__ = ["ReconstructionLayout", "capture_folder", "reconstruction_names"]

INPUT_SUFFIXES = (".nii.gz", ".nii", ".png")


def reconstruction_names(
    records: Sequence[Mapping[str, Any]], dataset_dir: str | Path, postfix: str, *, dicom: bool = False
) -> list[str]:
    """Where each reconstruction goes, relative to the output folder: the input's own path, with the postfix.

    Args:
        records: with the path of each input.
        dataset_dir: what the inputs' paths are taken relative to.
        postfix: follows the input's name.
        dicom: also name the folders with secondary captures.

    Raises:
        DatalistError: two inputs would be written to one file.
    """
    folder = Path(dataset_dir).resolve()
    paths: dict[str, Path] = {}
    for record in records:
        path = Path(record["image"])
        name = _name(path, folder, postfix)
        if paths.setdefault(name, path) != path:
            raise DatalistError(f"{paths[name]} and {path} would both be written as {name}; rename or move one.")
    captures = [capture_folder(path, folder, postfix) for path in paths.values()] if dicom else []
    return [*paths, *captures]


def capture_folder(path: Path, dataset_dir: Path, postfix: str) -> str:
    """Where an input's secondary captures go, relative to the output folder."""
    return _name(path, dataset_dir, postfix).removesuffix(".nii.gz") + "_dicom"


def _name(path: Path, folder: Path, postfix: str) -> str:
    # not resolved: a link's own name counts
    parent = path.parent.relative_to(folder) if folder in path.parents else Path()
    return (parent / f"{_stem(path)}_{postfix}.nii.gz").as_posix()


def _stem(path: Path) -> str:
    """The file name without .nii, .nii.gz, .png; the name of a DICOM folder as it is, with all its dots."""
    suffix = next((suffix for suffix in INPUT_SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


class ReconstructionLayout(FolderLayoutBase):
    """The names of `reconstruction_names` for MONAI's `SaveImage`, whose own cut a folder 1.2.3.4 down to 1.2.3.

    Args:
        output_dir: where reconstructions go.
        dataset_dir: what the inputs' paths are taken relative to.
        postfix: follows the input's name.
    """

    def __init__(self, output_dir: PathLike, dataset_dir: PathLike, postfix: str) -> None:
        self.output_dir, self.dataset_dir, self.postfix = Path(output_dir), Path(dataset_dir).resolve(), postfix

    def filename(self, **kwargs: Any) -> Path:
        """The file for an input's path, which MONAI gives as `subject`; its folder is made."""
        path = self.output_dir / _name(Path(kwargs["subject"]), self.dataset_dir, self.postfix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
