"""A model for deployment without this project, each file checked against the network it came from.

    autoencoder, encoder, decoder    .ts TorchScript, .onnx, .pt2 torch.export      any batch and size
    prior_level0, ...                .onnx, .pt2: one step of drawing, with caches  any batch
    sampling.json                    what drawing from the priors takes beside them: grids, settings, conditions

Shape suffixes: b batch, c channels, k number of codes, s spatial axes (2 or 3).
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_vqgen.errors import InputError, StageError
from monai_vqgen.files import write_bytes, write_json
from monai_vqgen.networks import GatedPixelCNN, HierarchicalVQVAE
from monai_vqgen.networks.priors.gated.slab_step import GatedSlabStep

__all__ = ["export_model", "export_names"]

logger = logging.getLogger(__name__)

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "pt2": ".pt2"}
OF_PRIORS = ("onnx", "pt2")  # TorchScript, which is leaving, has the autoencoder alone
SAMPLING, INDEX = "sampling.json", "index"
SAME_CODES = 0.999  # share of positions: two nearest codes may be as near as rounding
LARGEST_DIFFERENCE = 1e-4  # of an image in [0, 1]
LARGEST_OF_LOGITS = 1e-3  # they lie some units apart
SAME_PIXELS = {"autoencoder": 0.95}  # share, else all: from image to image a code that falls otherwise is a patch
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


class _GridStep(nn.Module):
    """As `GatedSlabStep`, without caches: runs a prior of any kind on the whole grid."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior, self.caches = prior, dict[str, tuple[int, ...]]()

    def forward(self, index: Tensor, codes_bs: Tensor, *given: Tensor) -> Tensor:
        levels = len(self.prior.coarser_codes)
        logits_bks: Tensor = self.prior(codes_bs, given[:levels], given[levels] if self.prior.condition_dim else None)
        return logits_bks.index_select(2, index)


def _step(prior: Any, grid: Sequence[int]) -> Any:
    return (GatedSlabStep(prior, grid) if isinstance(prior, GatedPixelCNN) else _GridStep(prior)).eval()


class _Part(NamedTuple):
    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]
    free: Any  # axes of each input that may have any length, as torch.export takes them

    def program(self) -> torch.export.ExportedProgram:
        return torch.export.export(self.module, self.inputs, dynamic_shapes=self.free, strict=False)


class _Exported(NamedTuple):
    content: bytes
    run: Callable[..., Any]


def export_names(formats: Sequence[str], model: Any = None) -> list[str]:
    """The files that an export to these formats writes.

    Args:
        formats: of `export_model`.
        model: whose priors are exported with it; None for an autoencoder alone.

    Raises:
        InputError: a format that is not known, or none.
    """
    unknown = sorted(set(formats) - set(SUFFIXES))
    if unknown or not formats:
        raise InputError(f"formats are {list(formats)}; choose from {', '.join(SUFFIXES)}")
    of_autoencoder = [name + SUFFIXES[format] for format in formats for name in ("autoencoder", "encoder", "decoder")]
    levels = range(len(model.priors)) if model is not None else ()
    priors = [_prior_name(level) + SUFFIXES[f] for f in formats if f in OF_PRIORS for level in levels]
    return [*of_autoencoder, *priors, *([SAMPLING] if priors else [])]


def _prior_name(level: int) -> str:
    return f"prior_level{level}"


def export_model(
    model: Any,
    output_dir: str | Path,
    *,
    image_size: Sequence[int] = (128, 128),
    formats: Sequence[str] = tuple(SUFFIXES),
) -> list[Path]:
    """Write `autoencoder`, `encoder` (images to codes), `decoder` (codes to images), and each prior.

    Batch and size of the autoencoder's are free: any size that the coarsest stride divides, to be padded by the caller
    where it does not. A prior takes the index of a row (of a plane in 3D), any number of grids of its own size, those
    of the coarser levels and a condition `(b, f)`, as far as it has them, and caches; it gives the logits of the row's
    positions, `(b, k, 1, *row)`, and the next row's caches (`GatedSlabStep`). `sampling.json` says the rest.

    Args:
        model: a `TrainedModel`.
        output_dir: where the files go.
        image_size: of the example that the autoencoder's graphs are made with.
        formats: "torchscript" (`.ts`, no priors), "onnx" (`.onnx`; needs the extra `onnx`), "pt2" (`.pt2`).

    Returns:
        The files.

    Raises:
        InputError: an unknown format, a size that the network cannot divide, or packages that are missing.
        StageError: an exported graph does not give what the network gives; its file is not kept.
    """
    export_names(formats)
    network: HierarchicalVQVAE = model.autoencoder
    bad = [size for size in image_size if size % network.strides[0]]
    if bad or len(image_size) != network.spatial_dims:
        raise InputError(
            f"image_size={tuple(image_size)}: give {network.spatial_dims} sizes that {network.strides[0]} divides"
        )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.to("cpu")
    files = []
    with torch.no_grad():
        for part in [*_parts(network.eval(), image_size), *_prior_parts(model)]:
            program = functools.cache(part.program)
            for format in formats:
                if part.name.startswith("prior") and format not in OF_PRIORS:
                    continue
                path = folder / (part.name + SUFFIXES[format])
                exported = _EXPORTERS[format](part, program)
                _check(part, exported.run, format)
                write_bytes(path, exported.content)
                files.append(path)
                logger.info("%s gives what the network gives", path)
    if model.priors and set(formats) & set(OF_PRIORS):
        write_json(folder / SAMPLING, _sampling(model))
        files.append(folder / SAMPLING)
    return files


def _sampling(model: Any) -> dict[str, Any]:
    return {
        "grids": [list(grid) for grid in model.grids],
        "num_codes": [prior.num_codes for prior in model.priors],
        "caches": [
            _step(prior, grid).caches for prior, grid in zip(model.priors, model.grids, strict=bool(model.priors))
        ],
        **{name: list(values) for name, values in model.settings._asdict().items()},
        "condition": None if model.condition is None else model.condition.to_dict(),
        "image_size": list(model.record.image_size),
        "fingerprint": model.record.fingerprint,
    }


def _parts(network: HierarchicalVQVAE, image_size: Sequence[int]) -> list[_Part]:
    generator = torch.Generator().manual_seed(0)
    images_bcs = torch.rand(EXAMPLES, network.in_channels, *image_size, generator=generator)
    codes = network.encode(images_bcs)
    names = [f"codes_{level}" for level in range(network.num_levels)]
    of_image = (_free(0, *range(2, images_bcs.ndim)),)
    of_codes = (tuple(_free(*range(grid_bs.ndim)) for grid_bs in codes),)  # one variadic argument
    return [
        _Part("autoencoder", network, (images_bcs,), ["image"], ["pred"], of_image),
        _Part("encoder", _Encoder(network).eval(), (images_bcs,), ["image"], names, of_image),
        _Part("decoder", _Decoder(network).eval(), codes, names, ["pred"], of_codes),
    ]


def _prior_parts(model: Any) -> list[_Part]:
    generator, parts, codes = torch.Generator().manual_seed(0), list[_Part](), list[Tensor]()
    for level, (prior, grid) in enumerate(zip(model.priors, model.grids, strict=bool(model.priors))):
        step = _step(prior, grid)
        codes.append(torch.randint(prior.num_codes, (EXAMPLES, *grid), generator=generator))
        inputs, names = [codes[level], *codes[:level]], [f"codes_{i}" for i in (level, *range(level))]
        if prior.condition_dim:
            inputs.append(torch.rand(EXAMPLES, prior.condition_dim, generator=generator))
            names.append("condition")
        inputs += [torch.randn(EXAMPLES, *shape, generator=generator) for shape in step.caches.values()]
        more = tuple(_free(0) for _ in inputs[1:])
        free = (_free(), _free(0), more) if more else (_free(), _free(0))
        last = torch.tensor([grid[0] - 1])
        outputs = ["logits", *(f"next_{name}" for name in step.caches)]
        parts.append(_Part(_prior_name(level), step, (last, *inputs), [INDEX, *names, *step.caches], outputs, free))
    return parts


def _free(*axes: int) -> dict[int, Any]:
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


_Program = Callable[[], torch.export.ExportedProgram]  # made when it is first asked for


def _to_torchscript(part: _Part, _: _Program) -> _Exported:
    content = io.BytesIO()  # torch's writer of files ends the process when the disk fills up under it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes may become constants: they do not, see the check
        torch.jit.save(torch.jit.trace(part.module, part.inputs, check_trace=False), content)
    content.seek(0)
    return _Exported(content.getvalue(), torch.jit.load(content))


def _to_pt2(_: _Part, program: _Program) -> _Exported:
    content = io.BytesIO()
    torch.export.save(program(), content)
    content.seek(0)
    return _Exported(content.getvalue(), torch.export.load(content).module())


def _to_onnx(part: _Part, program: _Program) -> _Exported:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter imports it late)
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}: pip install 'monai-vqgen[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about torch's own code
        graph: Any = torch.onnx.export(
            program(), input_names=part.input_names, output_names=part.output_names, dynamo=True, verbose=False
        )
    content = graph.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(part.input_names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(part.output_names, given)]

    return _Exported(content, run)


_EXPORTERS: dict[str, Callable[[_Part, _Program], _Exported]] = {
    "torchscript": _to_torchscript,
    "onnx": _to_onnx,
    "pt2": _to_pt2,
}


def _check(part: _Part, run: Callable[..., Any], format: str) -> None:
    """Compare on a batch, another row of a prior's and, where it is free, a size that the graph was not made with."""
    logits = part.output_names[0] == "logits"
    named = zip(part.input_names, part.inputs, strict=True)
    inputs = tuple(value // 2 if name == INDEX else torch.cat([value, value[:1]]) for name, value in named)
    if not logits:
        inputs = tuple(value.repeat(1, *(1,) * (value.ndim - 2), 2) for value in inputs)
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
        most = LARGEST_OF_LOGITS if logits else LARGEST_DIFFERENCE
        if not float((difference <= most).float().mean()) >= SAME_PIXELS.get(part.name, 1.0):
            worst, what = float(difference.max()), "logits" if logits else "images"
            raise StageError(f"{what} of the {format} {part.name} differ by {worst:.2g} from the network's")
