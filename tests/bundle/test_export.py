"""Exported graphs give, without this project, what the network gives, at sizes they were not made with."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.apps import run_stage
from monai_vqgen.apps.export import export_names
from monai_vqgen.errors import InputError, OutputExistsError, StageError
from monai_vqgen.handlers import save_weights
from monai_vqgen.networks import EMACodebook, HierarchicalVQVAE

CODES = 16
OPTIONS = {
    "network_def::channels": 8,
    "network_def::residual_channels": 4,
    **{f"network_def::quantizers::{level}::num_codes": CODES for level in (0, 1)},
    "image_size": [32, 48],
}


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
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_weights(network, path)
    return network.eval(), path


def check(network, run, part: str) -> None:
    with torch.no_grad():
        batch = images(count=3, size=(64, 40))
        codes = network.encode(batch)
        assert len(codes[-1].unique()) > 2
        if part == "encoder":
            for given, expected in zip(run(batch), codes, strict=True):
                assert float((given == expected).float().mean()) >= 0.999
        else:
            given = run(*codes) if part == "decoder" else run(batch)
            torch.testing.assert_close(given, network.decode(codes), rtol=0, atol=1e-4)


@pytest.mark.parametrize("part", ["autoencoder", "encoder", "decoder"])
def test_torchscript_needs_nothing_but_torch(model, tmp_path, part):
    network, path = model
    run_stage(
        "export", options={**OPTIONS, "model": str(path), "output_dir": str(tmp_path), "formats": ["torchscript"]}
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["autoencoder.ts", "decoder.ts", "encoder.ts"]
    check(network, torch.jit.load(tmp_path / f"{part}.ts"), part)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter uses what torch and onnxscript deprecate
def test_onnx_needs_nothing_but_onnxruntime(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, path = model
    run_stage("export", options={**OPTIONS, "model": str(path), "output_dir": str(tmp_path), "formats": ["onnx"]})
    for part in ("autoencoder", "encoder", "decoder"):
        session = onnxruntime.InferenceSession((tmp_path / f"{part}.onnx").read_bytes())
        names = [value.name for value in session.get_inputs()]

        def run(*inputs, session=session, names=names):
            outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
            tensors = [torch.from_numpy(output) for output in outputs]
            return tensors if len(tensors) > 1 else tensors[0]

        check(network, run, part)


def test_a_graph_that_differs_from_the_network_is_not_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_vqgen.apps.export.LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(StageError, match="torchscript autoencoder differ"):
        run_stage(
            "export",
            options={**OPTIONS, "model": str(model[1]), "output_dir": str(tmp_path), "formats": ["torchscript"]},
        )
    assert not list(tmp_path.iterdir())


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
