"""A writer for MONAI's `SaveImage` that knows slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data.image_writer import NibabelWriter

from monai_vqgen.errors import ScanError
from monai_vqgen.files import replace_path

__all__ = ["CompleteNiftiWriter"]


class CompleteNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer for one channel, `SaveImaged(..., writer=CompleteNiftiWriter)`: nothing is resampled.

    A slice `[1, H, W]` or `[1, H, W, 1]` becomes `[H, W, 1]`, in its place in space by its 4x4 affine. MONAI's own
    writer takes it for a picture in the x-y plane: it cannot write one in any other, nor one whose meta lacks the
    volume's shape. A file at its name is complete.
    """

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take `[1, X, Y, Z]` or `[1, H, W]` as it is; MONAI would also drop a last spatial axis of one voxel.

        Raises:
            ScanError: another shape.
        """
        if data_array.ndim not in (3, 4) or data_array.shape[0] != 1:
            raise ScanError(f"shape {tuple(data_array.shape)}: one channel is due, [1, X, Y, Z] or [1, H, W].")
        voxels = np.asarray(data_array[0])
        self.data_obj = voxels[..., None] if voxels.ndim == 2 else voxels

    def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, resample: bool = True, **options: Any) -> None:
        """Take the affine; `resample` and its options are not for slices, and ignored."""
        self.affine = np.eye(4) if meta_dict is None else np.asarray(meta_dict["affine"], dtype=np.float64)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write beside the file, then rename."""
        with replace_path(filename, durable=False) as partial:  # nibabel goes by the suffix, which it keeps
            super().write(partial, verbose=verbose, **obj_kwargs)
