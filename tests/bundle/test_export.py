"""Exported graphs give, without this project, what the network gives, at sizes they were not made with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import POSITIONS, tiny_autoencoder, tiny_model
from near_ties import assert_same_draws

from monai_vqgen.bundles import run_stage
from monai_vqgen.data import SliceOptions, SplitOptions, extract_slices, load_datalist
from monai_vqgen.errors import InputError, OutputExistsError, StageError
from monai_vqgen.models import SamplingSettings, TrainedModel, export, export_model, export_names
from monai_vqgen.models.loading import LoadedPriors
from monai_vqgen.networks import DecoderOnlyPrior, EMACodebook, HierarchicalVQVAE, MaskedPixelCNN
from monai_vqgen.transforms import LoadSlice

CODES, REAL_CODES = 16, 128
PARTS = ("autoencoder", "encoder", "decoder")
SAME_CODES, LARGEST_DIFFERENCE = 0.999, 1e-4  # what a deployment may count on
OPTIONS = {"image_size": [32, 48]}


def images(*, count: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 1, *size, generator=generator)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network whose latents, and with them its codes, lie far apart."""
    torch.manual_seed(0)
    network = HierarchicalVQVAE(channels=8, residual_channels=4, quantizers=[EMACodebook(CODES, 16) for _ in range(2)])
    batch = images(count=16, size=(32, 32))
    with torch.no_grad():
        for level, layer in enumerate(network.to_latents):
            network.train_pass(batch)
            layer.weight.mul_(5 / network.quantizers[level].embeddings_kd.std(0).mean())
            for quantizer in network.quantizers:
                quantizer.initialized.fill_(False)
        network.train_pass(batch)
    settings = SamplingSettings((0.7, 1.0), (None, 9), (0.9, None))
    whole = tiny_model((32, 48), autoencoder=network, condition=POSITIONS, settings=settings, attention_every=2)
    for prior in whole.priors:
        with torch.no_grad():  # untrained logits are nearly equal
            prior.head[-1].weight.mul_(40)
    return network.eval(), whole.save(tmp_path_factory.mktemp("model")) / "model.pt"


def check(network, run, part: str, *, batch: torch.Tensor) -> None:
    """Compare a graph with the network; `run` takes and gives what the part does."""
    with torch.no_grad():
        codes = network.encode(batch)
        assert len(codes[-1].unique()) > 2
        if part == "encoder":
            for given, expected in zip(run(batch), codes, strict=True):
                assert given.shape == expected.shape
                assert float((given == expected).float().mean()) >= SAME_CODES
        else:
            given = run(*codes) if part == "decoder" else run(batch)
            same = (given - network.decode(codes)).abs() <= LARGEST_DIFFERENCE
            # from image to image, one of the codes that may differ changes the patch that it describes
            assert float(same.float().mean()) >= (1.0 if part == "decoder" else 0.95)


def onnx_runner(path: Path):
    """An ONNX file as a function of tensors, run by onnxruntime alone."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path.read_bytes())
    names = [value.name for value in session.get_inputs()]

    def run(*inputs):
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        tensors = [torch.from_numpy(output) for output in outputs]
        return tensors if len(tensors) > 1 else tensors[0]

    return run


@pytest.mark.parametrize("part", PARTS)
def test_torchscript_needs_nothing_but_torch(model, tmp_path, part):
    network, path = model
    run_stage(
        "export", options={**OPTIONS, "model": str(path), "output_dir": str(tmp_path), "formats": ["torchscript"]}
    )
    assert sorted(file.name for file in tmp_path.glob("[!.]*")) == ["autoencoder.ts", "decoder.ts", "encoder.ts"]
    for count, size in ((3, (64, 40)), (1, (16, 24))):
        check(network, torch.jit.load(tmp_path / f"{part}.ts"), part, batch=images(count=count, size=size))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """What the stage writes when nothing is said."""
    folder = tmp_path_factory.mktemp("exported")
    pytest.importorskip("onnxruntime")
    run_stage("export", options={**OPTIONS, "model": str(model[1]), "output_dir": str(folder)})
    return folder


def runner(path: Path):
    return onnx_runner(path) if path.suffix == ".onnx" else torch.export.load(path).module()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter uses what torch and onnxscript deprecate
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_onnx_needs_nothing_but_onnxruntime_and_pt2_nothing_but_torch(model, exported, suffix):
    for part in PARTS:
        run = runner(exported / f"{part}{suffix}")
        for count, size in ((3, (64, 40)), (1, (16, 24))):
            check(model[0], run, part, batch=images(count=count, size=size))


# --- priors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_graph_of_a_prior_gives_its_logits_for_any_batch_row_by_row(model, exported, suffix):
    whole, generator = TrainedModel.from_bundle(model[1]), torch.Generator().manual_seed(5)
    assert {path.name for path in exported.glob("*[!s]") if "prior" in path.name} == {
        f"prior_level{level}{end}" for level in (0, 1) for end in (".onnx", ".pt2")
    }
    for level, prior in enumerate(whole.priors):
        run = runner(exported / f"prior_level{level}{suffix}")
        for count in (1, 4):
            codes = [torch.randint(CODES, (count, *grid), generator=generator) for grid in whole.grids]
            condition = torch.rand(count, POSITIONS.dim, generator=generator)
            with torch.no_grad():
                expected = prior(codes[level], codes[:level], condition)
            assert float(expected.std()) > 0.5
            about = json.loads((exported / "sampling.json").read_text())["caches"][level]
            caches = [torch.zeros(count, *shape) for shape in about.values()]
            for row in range(whole.grids[level][0]):
                later = torch.arange(whole.grids[level][0])[:, None] > row  # rows that a caller has not drawn yet
                known = codes[level].masked_fill(later, 0)
                logits, *caches = run(torch.tensor([row]), known, *codes[:level], condition, *caches)
                torch.testing.assert_close(logits, expected[:, :, row : row + 1], atol=1e-3, rtol=0)


def test_a_model_without_priors_is_exported_alone(tmp_path):
    whole = tiny_model((16, 16), with_priors=False)
    files = export_model(whole, tmp_path, image_size=(16, 16), formats=["torchscript"])
    assert [path.name for path in files] == export_names(["torchscript"], whole)


BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "monai", "monai_vqgen"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocked())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_sampling.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_numpy_and_onnxruntime_draw_the_codes_of_the_sampler(model, exported, tmp_path):
    settings = json.loads((exported / "sampling.json").read_text())
    assert (settings["temperature"], settings["top_k"], settings["top_p"]) == ([0.7, 1.0], [None, 9], [0.9, None])
    words = [str(exported), str(tmp_path / "slices.npz"), "--num_samples", "5", "--seed", "3"]
    words += ["--condition", "position_mm=65"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(EXAMPLE), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    drawn = np.load(tmp_path / "slices.npz")
    whole = TrainedModel.from_bundle(model[1])
    expected = whole.sample(5, position_mm=65.0, seed=3)
    codes = [torch.from_numpy(drawn[f"codes_{level}"]) for level in (0, 1)]
    assert_same_draws(codes, expected.codes)
    assert len(codes[1].unique()) > 4
    decoded = whole.decode(codes)
    np.testing.assert_allclose(drawn["images"], decoded.numpy(), rtol=0, atol=LARGEST_DIFFERENCE)
    assert drawn["images"].shape == (5, 1, 32, 48)


@pytest.mark.parametrize(
    ("condition", "message"),
    [("age=30", r"no condition is named \['age'\]"), ("position_mm=200", "outside of 40.0 to 97.0")],
)
def test_conditions_that_the_priors_do_not_know_are_refused_without_the_package_too(tmp_path, condition, message):
    about = {"condition": POSITIONS.to_dict(), "grids": [], "num_codes": []}
    (tmp_path / "sampling.json").write_text(json.dumps(about))
    command = [sys.executable, str(EXAMPLE), str(tmp_path), "out.npz", "--condition", condition]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(message, done.stderr)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [MaskedPixelCNN, DecoderOnlyPrior])
def test_priors_of_every_kind_are_exported(kind, tmp_path, monkeypatch):
    """The check within the export compares each with the prior; here without the autoencoder's files."""
    monkeypatch.setattr("monai_vqgen.models.export._parts", lambda *_: [])
    network = tiny_autoencoder(strides=(4,))
    sizes = {"num_blocks": 2} if kind is MaskedPixelCNN else {"max_positions": 16, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    prior = kind(8, channels=16, **sizes)
    settings = SamplingSettings.recorded([{}])
    whole = TrainedModel(network, LoadedPriors((prior.eval(),), ((4, 4),), None, settings, (16, 16)))
    names = [path.name for path in export_model(whole, tmp_path, image_size=(16, 16), formats=["onnx"])]
    assert names == ["prior_level0.onnx", "sampling.json"]
    assert set(names) < set(export_names(["onnx"], whole))


# --- on slices of real scans, by a network that has learned from them


@pytest.fixture(scope="module")
def real_slices(real_data, tmp_path_factory) -> torch.Tensor:
    """Slices `(n, 1, 128, 128)` of the volumes of every orientation, at the bundle's own pixels."""
    folder = tmp_path_factory.mktemp("real") / "slices"
    positions = [45.0, 60.0, 75.0]
    slices, split = SliceOptions(positions=positions, on_trim="warn"), SplitOptions((1, 0, 0))
    extract_slices(real_data / "volumes", folder, slices=slices, split=split, progress=False)
    slices = torch.stack([LoadSlice()(record["image"]).as_tensor() for record in load_datalist(folder, "training")])
    assert len(slices) >= 20
    return slices


@pytest.fixture(scope="module")
def real_model(real_slices, tmp_path_factory):
    """Trained for a few steps: enough for codes that differ from place to place."""
    torch.manual_seed(0)
    quantizers = [EMACodebook(REAL_CODES, 16) for _ in range(2)]
    network = HierarchicalVQVAE(channels=32, residual_channels=16, quantizers=quantizers)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(40):
        batch = real_slices[torch.randint(len(real_slices), (4,))]
        reconstruction, levels = network.train_pass(batch)
        loss = F.mse_loss(reconstruction, batch) + sum(level.loss for level in levels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for quantizer in quantizers:
        quantizer.initialized.fill_(False)  # codebooks anew from what the encoder now makes of real slices
    with torch.no_grad():
        network.train_pass(real_slices)
    whole = tiny_model((128, 128), autoencoder=network, with_priors=False)
    path = whole.save(tmp_path_factory.mktemp("real_model")) / "model.pt"
    with torch.no_grad():
        codes = network.eval().encode(real_slices)
    assert min(len(level.unique()) for level in codes) > 10
    return network, path


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter uses what torch and onnxscript deprecate
@pytest.mark.parametrize("format", ["torchscript", "onnx", "pt2"])
def test_graphs_give_the_codes_and_images_of_real_slices(format, real_model, real_slices, tmp_path):
    network, path = real_model
    run_stage("export", options={"model": str(path), "output_dir": str(tmp_path), "formats": [format]})
    for part in PARTS:
        name = tmp_path / (part + {"torchscript": ".ts", "onnx": ".onnx", "pt2": ".pt2"}[format])
        run = torch.jit.load(name) if format == "torchscript" else runner(name)
        check(network, run, part, batch=real_slices)


def test_a_graph_that_differs_from_the_network_is_not_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_vqgen.models.export.LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(StageError, match="torchscript autoencoder differ"):
        run_stage(
            "export",
            options={**OPTIONS, "model": str(model[1]), "output_dir": str(tmp_path), "formats": ["torchscript"]},
        )
    assert not list(tmp_path.glob("[!.]*"))


def test_a_graph_of_a_prior_that_gives_one_row_whatever_is_asked_for_is_not_kept(tmp_path, monkeypatch):
    def one_row(part, program):
        index = part.inputs[:1] if part.name.startswith("prior") else ()
        return export._Exported(b"", lambda *inputs: part.module(*index, *inputs[len(index) :]))

    monkeypatch.setitem(export._EXPORTERS, "pt2", one_row)
    whole = tiny_model((16, 16), attention_every=1)
    with torch.no_grad():
        whole.priors[0].head[-1].weight.mul_(40)
    with pytest.raises(StageError, match="logits of the pt2 prior_level0 differ"):
        export_model(whole, tmp_path, image_size=(16, 16), formats=["pt2"])


def test_what_cannot_be_exported_is_named(model, tmp_path):
    given = {**OPTIONS, "model": str(model[1]), "output_dir": str(tmp_path)}
    with pytest.raises(InputError, match=r"formats are .*'tflite'.*choose from torchscript, onnx"):
        run_stage("export", options={**given, "formats": ["tflite"]})
    with pytest.raises(InputError, match="give 2 sizes that 8 divides"):
        run_stage("export", options={**given, "formats": ["torchscript"], "image_size": [32, 44]})
    (tmp_path / "encoder.ts").touch()
    with pytest.raises(OutputExistsError, match=r"encoder\.ts"):
        run_stage("export", options={**given, "formats": ["torchscript"]})
    assert export_names(["onnx"]) == ["autoencoder.onnx", "encoder.onnx", "decoder.onnx"]


def test_an_autoencoder_without_priors_is_exported_with_its_blank_cells(tmp_path):
    network = tiny_autoencoder(blank_threshold=0.01, blank_margin=(1, 0))
    model = tiny_model((16, 24), autoencoder=network, with_priors=False)  # whose record has the size of its images
    export_model(model, tmp_path, image_size=(16, 24), formats=["torchscript"])
    images = torch.zeros(2, 1, 24, 40)
    images[..., 9:13, 22:30] = 0.6
    found = torch.jit.load(tmp_path / "encoder.ts")(images)
    assert all(torch.equal(grid, wanted) for grid, wanted in zip(found, network.encode(images), strict=True))
    assert all(0 < int((grid == 8).sum()) < grid.numel() for grid in found)
