"""Slices and intensities: array transforms and their dictionary versions, which keep MetaTensor and affine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.transforms.dictionary import (
        ExtractSliceD,
        ExtractSliced,
        ExtractSliceDict,
        ExtractSlicesD,
        ExtractSlicesd,
        ExtractSlicesDict,
        FitToSizeD,
        FitToSized,
        FitToSizeDict,
        LoadSliceD,
        LoadSliced,
        LoadSliceDict,
        ScaleForegroundD,
        ScaleForegroundd,
        ScaleForegroundDict,
    )
    from monai_vqgen.transforms.extract_slice import ExtractSlice, ExtractSlices
    from monai_vqgen.transforms.intensity import ScaleForeground
    from monai_vqgen.transforms.loading import LoadSlice
    from monai_vqgen.transforms.size import FitToSize
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "dictionary": [
                "ExtractSliceD",
                "ExtractSliced",
                "ExtractSliceDict",
                "ExtractSlicesD",
                "ExtractSlicesd",
                "ExtractSlicesDict",
                "FitToSizeD",
                "FitToSized",
                "FitToSizeDict",
                "LoadSliceD",
                "LoadSliced",
                "LoadSliceDict",
                "ScaleForegroundD",
                "ScaleForegroundd",
                "ScaleForegroundDict",
            ],
            "extract_slice": ["ExtractSlice", "ExtractSlices"],
            "intensity": ["ScaleForeground"],
            "loading": ["LoadSlice"],
            "size": ["FitToSize"],
        },
    )

__all__ = [
    "ExtractSlice",
    "ExtractSliceD",
    "ExtractSliceDict",
    "ExtractSliced",
    "ExtractSlices",
    "ExtractSlicesD",
    "ExtractSlicesDict",
    "ExtractSlicesd",
    "FitToSize",
    "FitToSizeD",
    "FitToSizeDict",
    "FitToSized",
    "LoadSlice",
    "LoadSliceD",
    "LoadSliceDict",
    "LoadSliced",
    "ScaleForeground",
    "ScaleForegroundD",
    "ScaleForegroundDict",
    "ScaleForegroundd",
]
