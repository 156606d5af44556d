"""The autoencoder for deployment without this project: TorchScript and ONNX, whole and in halves, each checked.

Shape suffixes: b batch, c channels, s spatial axes (2 or 3).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_vqgen.errors import InputError, StageError
from monai_vqgen.files import write_bytes
from monai_vqgen.networks import HierarchicalVQVAE

__all__ = ["export_autoencoder", "export_names"]

logger = logging.getLogger(__name__)

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx"}
SAME_CODES = 0.999  # share of positions: two nearest codes may be as near as rounding
LARGEST_DIFFERENCE = 1e-4  # of an image in [0, 1]
SAME_PIXELS = {"autoencoder": 0.95, "decoder": 1.0}  # share; from image to image a code that falls otherwise is a patch
EXAMPLES = 2  # images in the batch that the graphs are made and checked with


class _Encoder(nn.Module):
    """Images `(b, c, *s)` to grids of codes `(b, *s)`, coarsest first."""

    def __init__(self, autoencoder: HierarchicalVQVAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images_bcs: Tensor) -> tuple[Tensor, ...]:
        return self.autoencoder.encode(images_bcs)


class _Decoder(_Encoder):
    """Grids of codes, coarsest first, to images of the grids' size times the stride; the caller crops."""

    def forward(self, *codes_bs: Tensor) -> Tensor:  # type: ignore[override]
        return self.autoencoder.decode(codes_bs)


class _Part(NamedTuple):
    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]


class _Exported(NamedTuple):
    content: bytes
    run: Callable[..., Any]


def export_names(formats: Sequence[str]) -> list[str]:
    """The files that an export to these formats writes.

    Raises:
        InputError: a format that is not known, or none.
    """
    unknown = sorted(set(formats) - set(SUFFIXES))
    if unknown or not formats:
        raise InputError(f"formats are {list(formats)}; choose from {', '.join(SUFFIXES)}")
    return [name + SUFFIXES[format] for format in formats for name in ("autoencoder", "encoder", "decoder")]


def export_autoencoder(
    network: HierarchicalVQVAE,
    output_dir: str | Path,
    *,
    image_size: Sequence[int] = (128, 128),
    formats: Sequence[str] = ("torchscript", "onnx"),
) -> list[Path]:
    """Write `autoencoder`, `encoder` (images to codes) and `decoder` (codes to images), and check each against eager.

    Batch and size are free: any size that the coarsest stride divides, to be padded by the caller where it does not.

    Args:
        network: trained.
        output_dir: where the files go.
        image_size: of the example that the graphs are made with.
        formats: "torchscript" (`.ts`), "onnx" (`.onnx`; needs the extra `onnx`).

    Returns:
        The files.

    Raises:
        InputError: an unknown format, a size that the network cannot divide, or packages that are missing.
        StageError: an exported graph does not give what the network gives; its file is not kept.
    """
    export_names(formats)
    bad = [size for size in image_size if size % network.strides[0]]
    if bad or len(image_size) != network.spatial_dims:
        raise InputError(
            f"image_size={tuple(image_size)}: give {network.spatial_dims} sizes that {network.strides[0]} divides"
        )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    files = []
    with torch.no_grad():
        for part in _parts(network, image_size):
            for format in formats:
                path = folder / (part.name + SUFFIXES[format])
                exported = _EXPORTERS[format](part)
                _check(part, exported.run, format)
                write_bytes(path, exported.content)
                files.append(path)
                logger.info("%s gives what the network gives", path)
    return files


def _parts(network: HierarchicalVQVAE, image_size: Sequence[int]) -> list[_Part]:
    generator = torch.Generator().manual_seed(0)
    images_bcs = torch.rand(EXAMPLES, network.in_channels, *image_size, generator=generator)
    codes = network.encode(images_bcs)
    names = [f"codes_{level}" for level in range(network.num_levels)]
    return [
        _Part("autoencoder", network, (images_bcs,), ["image"], ["pred"]),
        _Part("encoder", _Encoder(network).eval(), (images_bcs,), ["image"], names),
        _Part("decoder", _Decoder(network).eval(), codes, names, ["pred"]),
    ]


def _to_torchscript(part: _Part) -> _Exported:
    content = io.BytesIO()  # torch's writer of files ends the process when the disk fills up under it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes may become constants: they do not, see the check
        torch.jit.save(torch.jit.trace(part.module, part.inputs, check_trace=False), content)
    content.seek(0)
    return _Exported(content.getvalue(), torch.jit.load(content))


def _to_onnx(part: _Part) -> _Exported:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter imports it late)
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}: pip install 'monai-vqgen[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about torch's own code
        program: Any = torch.onnx.export(
            part.module,
            part.inputs,
            input_names=part.input_names,
            output_names=part.output_names,
            dynamic_shapes=_free(part),
            dynamo=True,
            verbose=False,
        )
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(part.input_names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(part.output_names, given)]

    return _Exported(content, run)


def _free(part: _Part) -> tuple[Any, ...]:
    """Which axes of the inputs may have any length: all but the channels of images."""
    image = part.inputs[0].is_floating_point()
    axes = [axis for axis in range(part.inputs[0].ndim) if not (image and axis == 1)]
    every = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in part.inputs)
    return every if image else (every,)  # the grids of codes are one variadic argument


_EXPORTERS: dict[str, Callable[[_Part], _Exported]] = {
    "torchscript": _to_torchscript,
    "onnx": _to_onnx,
}


def _check(part: _Part, run: Callable[..., Any], format: str) -> None:
    """Compare on a batch and a size that the graph was not made with."""
    inputs = tuple(torch.cat([value, value[:1]]).repeat(1, *(1,) * (value.ndim - 2), 2) for value in part.inputs)
    expected, given = part.module(*inputs), run(*inputs)
    for right, got in zip(*([one] if isinstance(one, Tensor) else one for one in (expected, given)), strict=True):
        if right.dtype == torch.int64:
            same = float((right == got).float().mean()) if right.shape == got.shape else 0.0
            if same < SAME_CODES:
                raise StageError(
                    f"the {format} {part.name} gives {same:.2%} of the network's codes; expected {SAME_CODES:.1%}"
                )
            continue
        difference = (right - got).abs() if right.shape == got.shape else torch.full_like(right, float("inf"))
        if not float((difference <= LARGEST_DIFFERENCE).float().mean()) >= SAME_PIXELS[part.name]:
            worst = float(difference.max())
            raise StageError(f"images of the {format} {part.name} differ by {worst:.2g} from the network's")
