"""The parts of a code store that several processes make, handed to the first one through the output folder.

    CODES/.parts/<rank>.safetensors    gone as soon as CODES/codes.json stands

Through files, because the codes of a million slices are gigabytes, and memory-mapped files cost the first process no
memory. All processes must see the same folder, as they must see the same slices.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from monai_vqgen.data.processes import process_count, process_rank, wait_for_all
from monai_vqgen.files import replace_path

__all__ = ["parts_of_all"]

_FOLDER = ".parts"


@contextlib.contextmanager
def parts_of_all(own: Mapping[str, Tensor], output_dir: str | os.PathLike[str]) -> Iterator[list[Mapping[str, Tensor]]]:
    """Give the first process the tensors of all, by rank; the others wait until it has left the block.

    Every process calls this once, at the same place. What a run that was killed has left is replaced.

    Args:
        own: this process's tensors by name.
        output_dir: of the code store; made where missing.

    Raises:
        StageError: another process has ended.

    Example:
        >>> with parts_of_all({"codes": Tensor([1.0])}, "out/codes") as parts:
        ...     [part["codes"].item() for part in parts]
        [1.0]
    """
    if process_count() == 1:
        yield [own]
        return
    folder = Path(output_dir) / _FOLDER
    if process_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    wait_for_all()
    with replace_path(_part(folder, process_rank())) as partial:
        save_file(dict(own), partial)
    wait_for_all()
    try:
        yield [load_file(_part(folder, rank)) for rank in range(process_count())] if process_rank() == 0 else []
    finally:
        if process_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    wait_for_all()


def _part(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.safetensors"
