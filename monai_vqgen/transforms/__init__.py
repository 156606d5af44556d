"""Slices and intensities: array transforms and their dictionary versions, which keep MetaTensor and affine."""

from typing import TYPE_CHECKING

from monai_vqgen.lazy import attach

if TYPE_CHECKING:
    from monai_vqgen.transforms.dictionary import (
        ExtractSliceD as ExtractSliceD,
        ExtractSliced as ExtractSliced,
        ExtractSliceDict as ExtractSliceDict,
        ExtractSlicesD as ExtractSlicesD,
        ExtractSlicesd as ExtractSlicesd,
        ExtractSlicesDict as ExtractSlicesDict,
        FitToSizeD as FitToSizeD,
        FitToSized as FitToSized,
        FitToSizeDict as FitToSizeDict,
        LoadSliceD as LoadSliceD,
        LoadSliced as LoadSliced,
        LoadSliceDict as LoadSliceDict,
        MatchQuantilesD as MatchQuantilesD,
        MatchQuantilesd as MatchQuantilesd,
        MatchQuantilesDict as MatchQuantilesDict,
        ScaleForegroundD as ScaleForegroundD,
        ScaleForegroundd as ScaleForegroundd,
        ScaleForegroundDict as ScaleForegroundDict,
        SyntheticLesionD as SyntheticLesionD,
        SyntheticLesiond as SyntheticLesiond,
        SyntheticLesionDict as SyntheticLesionDict,
    )
    from monai_vqgen.transforms.extract_slice import ExtractSlice as ExtractSlice, ExtractSlices as ExtractSlices
    from monai_vqgen.transforms.intensity import MatchQuantiles as MatchQuantiles, ScaleForeground as ScaleForeground
    from monai_vqgen.transforms.lesions import (
        Lesion as Lesion,
        SyntheticLesion as SyntheticLesion,
        draw_lesion as draw_lesion,
        place_lesion as place_lesion,
    )
    from monai_vqgen.transforms.loading import LoadSlice as LoadSlice
    from monai_vqgen.transforms.size import FitToSize as FitToSize
else:
    __getattr__, __dir__, __all__ = attach(__name__)
