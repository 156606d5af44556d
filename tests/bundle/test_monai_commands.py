"""MONAI's own commands and functions take the bundle as it is: checked, run, loaded and exported without our help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow, load, run_workflow
from monai.data import load_net_with_metadata

from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.networks.architecture import architecture
from tools.package_bundle import BUNDLE_NAME

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
OTHER_SIZE = (3, 1, 40, 24)  # a batch and a size that no graph is made with
TRUSTED = "ignore:parsing config_file:UserWarning"  # that configurations are code


def monai(command: str, *words: str, folder: Path, **options: object) -> str:
    """What `python -m monai.bundle COMMAND` prints in another folder, where it ends well."""
    line = [sys.executable, "-m", "monai.bundle", command, *words]
    line += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def local_bundle(tiny_run, tmp_path_factory) -> Path:
    """The folder that holds a bundle with weights, as a download leaves it."""
    folder = tmp_path_factory.mktemp("bundles")
    shutil.copytree(BUNDLE, folder / BUNDLE_NAME, ignore=shutil.ignore_patterns("*.pt", "out"))
    (folder / BUNDLE_NAME / "models").mkdir(exist_ok=True)
    for name in ("model.pt", "model.json"):
        shutil.copy(tiny_run.folder / name, folder / BUNDLE_NAME / "models" / name)
    return folder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(OTHER_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["train", "inference"])
def test_monais_command_finds_the_network_as_the_metadata_say(config, tmp_path):
    """At the bundle's own size: input and output of `network_data_format`."""
    files = {"meta_file": CONFIGS / "metadata.json", "config_file": CONFIGS / f"{config}.json"}
    told = monai("verify_net_in_out", "network_def", folder=tmp_path, device="cpu", **files)
    assert "data shape of network is verified with no error" in told
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 2
    files["meta_file"] = tmp_path / "metadata.json"
    files["meta_file"].write_text(json.dumps(metadata))
    with pytest.raises(AssertionError, match="output channel number `1` doesn't match: `2`"):
        monai("verify_net_in_out", "network_def", folder=tmp_path, device="cpu", **files)


@pytest.mark.slow
def test_run_workflow_reconstructs_a_folder(tiny_run, tmp_path):
    options = tiny_run.options("inference", tmp_path / "out")
    config = {"config_file": CONFIGS / "inference.json", "workflow_type": "infer", "bundle_root": BUNDLE}
    monai("run_workflow", folder=tmp_path, **config, **options)
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["test0_recon.nii.gz", "test1_recon.nii.gz"]


@pytest.mark.filterwarnings(TRUSTED)
def test_create_workflow_gives_the_parts_of_a_local_folder(local_bundle, tiny_run, tmp_path, images):
    config = str(local_bundle / BUNDLE_NAME / "configs" / "inference.json")
    options = tiny_run.options("inference", tmp_path)
    options["model"] = str(local_bundle / BUNDLE_NAME / "models" / "model.pt")
    flow = create_workflow(config_file=config, workflow_type="infer", **options)
    assert flow.check_properties() == []
    network = flow.parser.get_parsed_content("network")
    with torch.no_grad():
        torch.testing.assert_close(network(images), tiny_run.network(images))


@pytest.mark.filterwarnings(TRUSTED)
def test_run_workflow_trains_on_a_folder_of_slices(tiny_run, tmp_path):
    options = {**tiny_run.options("train", tmp_path), "max_epochs": 1, "bundle_root": str(BUNDLE)}
    options["network_def::blank_threshold"] = "$None"  # MONAI drops None
    run_workflow(config_file=str(CONFIGS / "train.json"), workflow_type="train", logging_file=False, **options)
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == tiny_run.network.state_dict().keys()


@pytest.mark.filterwarnings(TRUSTED)
@pytest.mark.parametrize("options", [{}, {"workflow_type": "inference"}], ids=["by default", "for inference"])
def test_load_gives_the_shipped_network_straight_after_the_clone(options, images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where there is neither a slice nor a scan
    network = load(BUNDLE.name, bundle_dir=BUNDLE.parent, source="monaihosting", device="cpu", **options)
    assert isinstance(network, HierarchicalVQVAE)
    shipped = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert network.state_dict().keys() == shipped.keys()
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        assert network.eval()(images).shape == images.shape
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings(TRUSTED)
def test_load_gives_the_weights_alone_for_a_workflow_that_the_bundle_does_not_have():
    with pytest.warns(UserWarning, match=r"Cannot find the config file.*infer\.json, return state dict"):
        weights = load(
            BUNDLE.name, bundle_dir=BUNDLE.parent, source="monaihosting", device="cpu", workflow_type="infer"
        )
    assert weights.keys() == torch.load(BUNDLE / "models" / "model.pt", weights_only=True).keys()


@pytest.mark.filterwarnings(TRUSTED)
@pytest.mark.parametrize("workflow_type", ["train", "inference"])
@pytest.mark.parametrize("given", ["its own network", "a network of ours"])
def test_load_gives_the_trained_network_of_a_local_folder(
    given, workflow_type, local_bundle, tiny_run, images, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # where there are no scans
    options: dict = {"model": None, "workflow_type": workflow_type, "device": "cpu"}
    if given == "its own network":
        own = architecture(tiny_run.network)
        options["net_override"] = {name: own[name] for name in ("channels", "residual_channels", "quantizers")}
        options["net_override"]["blank_threshold"] = "$None"  # MONAI drops None
    else:
        options["model"] = type(tiny_run.network)(
            channels=8, residual_channels=4, quantizers=[type(q)(8, 16) for q in tiny_run.network.quantizers]
        )
    network = load(BUNDLE_NAME, bundle_dir=local_bundle, source="monaihosting", **options)
    assert isinstance(network, HierarchicalVQVAE)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), tiny_run.network(images))
    assert not list(tmp_path.iterdir())


def export_options(tiny_run) -> dict[str, object]:
    sizes = {name: value for name, value in tiny_run.options("train", Path()).items() if name.startswith("network_def")}
    files = {"config_file": CONFIGS / "inference.json", "meta_file": CONFIGS / "metadata.json"}
    return {**files, "ckpt_file": tiny_run.folder / "model.pt", "network_def::blank_threshold": "$None", **sizes}


@pytest.mark.slow
def test_ckpt_export_writes_a_torchscript_that_is_the_network(tiny_run, tmp_path, images):
    options = export_options(tiny_run)
    monai("ckpt_export", "network_def", folder=tmp_path, filepath="model.ts", use_trace="True", **options)
    graph, metadata, _ = load_net_with_metadata(tmp_path / "model.ts")
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(images), tiny_run.network(images), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_export_writes_a_graph_of_any_batch_and_size_that_is_the_network(tiny_run, tmp_path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    free = {"image": {0: "batch", 2: "rows", 3: "columns"}}
    kwargs = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": free}
    options = {**export_options(tiny_run), "use_trace": "True", "converter_kwargs": kwargs}
    monai("onnx_export", "network_def", folder=tmp_path, filepath="model.onnx", **options)
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    (given,) = session.run(["pred"], {"image": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(given, tiny_run.network(images).numpy(), rtol=0, atol=1e-4)
