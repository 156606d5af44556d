"""The bundle as one file: the zip that `python -m monai.bundle download --url` unpacks.

    brain_mri_slices_vqvae_pixelcnn_v0.1.0.zip
        brain_mri_slices_vqvae_pixelcnn/LICENSE, README.md
        brain_mri_slices_vqvae_pixelcnn/configs/...
        brain_mri_slices_vqvae_pixelcnn/docs/...
        brain_mri_slices_vqvae_pixelcnn/models/...      what there is of it

MONAI unpacks into `bundle_dir` and then looks for `bundle_dir/NAME/configs/metadata.json`, where NAME is what its user
gave as `--name`: the one folder in the zip has to have this name. Equal contents give equal bytes: files in the order
of their names, one date, one mode, nothing compressed (weights hardly shrink, and another zlib would shrink them to
other bytes).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from monai_vqgen.bundles import bundle_root
from monai_vqgen.errors import InputError
from monai_vqgen.files import replace_file

__all__ = ["BUNDLE_NAME", "build_bundle", "package_bundle"]

BUNDLE_NAME = "brain_mri_slices_vqvae_pixelcnn"
"""What to give MONAI as `--name`. MONAI Label takes some words in it for a task (detection, classification, ...)."""
FOLDERS = ("configs", "docs", "models")  # of the bundle specification; whatever else lies there is a run's output
FILES = ("LICENSE", "README.md", "large_files.yml")
"""The second is the card of the Hugging Face Hub; the third the Model Zoo's, only where a file is too big for it."""
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
MODE = 0o100644  # a plain file, readable by all
UNIX = 3  # as `create_system`, the same wherever the zip is built


def _members(source: Path) -> Iterator[Path]:
    """The bundle's files relative to its folder; hidden ones, such as half-written weights, are left out."""
    for name in FILES:
        if (source / name).is_file():
            yield Path(name)
    for name in FOLDERS:
        for path in (source / name).rglob("*"):
            relative = path.relative_to(source)
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in relative.parts):
                yield relative


def _version(source: Path) -> str:
    path = source / "configs" / "metadata.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} does not tell the bundle's version ({error!r}): every bundle needs this file"
        ) from error


def build_bundle(output_dir: str | Path, *, source: str | Path | None = None) -> Path:
    """Write the bundle's zip, `NAME_vVERSION.zip`, complete or not at all.

    Args:
        output_dir: the folder it goes to; made where it is missing.
        source: the bundle's folder; None for the one that came with this package.

    Returns:
        The path of the zip.

    Raises:
        InputError: the folder has no `configs/metadata.json` with a version.
    """
    root = bundle_root() if source is None else Path(source)
    path = Path(output_dir) / f"{BUNDLE_NAME}_v{_version(root)}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(member.as_posix() for member in _members(root)):
            member = zipfile.ZipInfo(f"{BUNDLE_NAME}/{name}", DATE)
            member.create_system, member.external_attr = UNIX, MODE << 16
            archive.writestr(member, (root / name).read_bytes())
    return path


def package_bundle(output_dir: str | Path = "dist") -> Path:
    """Build the zip of this package's bundle; print its path, size and checksum, and the command that downloads it."""
    path = build_bundle(output_dir)
    content = path.read_bytes()
    print(f"{path}  {len(content)} bytes  sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"python -m monai.bundle download --name {BUNDLE_NAME} --url URL/{path.name} --bundle_dir FOLDER")
    return path
