"""Slices and intensities: array transforms and their dictionary twins; MetaTensor and affine are kept."""

from __future__ import annotations

from monai_vqgen.transforms.dictionary import ExtractSliced, ExtractSlicesd, FitToSized, LoadSliced, ScaleForegroundd
from monai_vqgen.transforms.foreground import Box, Window, foreground_box, foreground_window
from monai_vqgen.transforms.geometry import PLANES
from monai_vqgen.transforms.intensity import ScaleForeground
from monai_vqgen.transforms.loading import LoadSlice
from monai_vqgen.transforms.resampling import resample_plane
from monai_vqgen.transforms.size import FitToSize
from monai_vqgen.transforms.slices import ExtractSlice, ExtractSlices

__all__ = [
    "PLANES",
    "Box",
    "ExtractSlice",
    "ExtractSliced",
    "ExtractSlices",
    "ExtractSlicesd",
    "FitToSize",
    "FitToSized",
    "LoadSlice",
    "LoadSliced",
    "ScaleForeground",
    "ScaleForegroundd",
    "Window",
    "foreground_box",
    "foreground_window",
    "resample_plane",
]
