"""What docs/sharing.md says runs as it stands there, against a hub on this machine."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_model
from hub_server import serving
from tiny_training import write_slices

from monai_vqgen.models import TrainedModel
from monai_vqgen.networks.architecture import architecture
from monai_vqgen.transforms import LoadSlice
from tools.package_bundle import BUNDLE_NAME

PAGE = Path(__file__).parents[2] / "docs" / "sharing.md"
pytestmark = pytest.mark.slow


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub")
    with serving() as server:
        yield server


def variables(hub, folder: Path) -> dict[str, str]:
    """The environment in which huggingface_hub takes a server for its own and keeps everything in a folder."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def command_of(documented, word: str) -> str:
    (command,) = [command for command in documented("docs/sharing.md") if word in command]
    return command


def test_the_lines_of_python_push_and_load_a_model(tiny_clone, hub):
    model = tiny_model(condition=POSITIONS)
    model.save(tiny_clone.folder / "RUN")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tiny_clone.folder / "lines.py").write_text(block)
    tiny_clone.run(f"{sys.executable} lines.py", **variables(hub, tiny_clone.folder))
    again = TrainedModel.from_bundle(tiny_clone.folder / "MODEL")
    assert again.record == model.record
    assert torch.equal(again.sample(1, seed=1).codes[1], model.sample(1, seed=1).codes[1])
    assert hub.private == {"OWNER/MODEL"}


def test_commands_take_the_name_of_a_repository(tiny_clone, hub, documented):
    model = tiny_model(condition=POSITIONS)
    model.save_pretrained(tiny_clone.folder / "kept")
    hub.upload("OWNER/MODEL", tiny_clone.folder / "kept")
    given = variables(hub, tiny_clone.folder)
    program = command_of(documented, "monai-vqgen sample").replace("monai-vqgen", f"{sys.executable} -m monai_vqgen")
    tiny_clone.run(program, **given)
    listed = json.loads((tiny_clone.folder / "out/samples/samples.json").read_text())["samples"]
    assert len(listed) == 4
    first = LoadSlice()(tiny_clone.folder / "out/samples" / listed[0]["image"])
    expected = model.sample(1, conditions=[listed[0]["condition"]]).images[0]
    assert torch.allclose(first.as_tensor(), expected, atol=1e-4)

    write_slices(tiny_clone.folder / "SLICES")
    known = architecture(model.autoencoder)
    network = json.dumps({name: value for name, value in known.items() if value is not None})
    train = command_of(documented, "--start_from OWNER/MODEL")
    tiny_clone.run(f"{train} --learning_rate 0.0 --network_def '{network}'", **given)
    assert "start_from: OWNER/MODEL" in (tiny_clone.folder / "TUNED/train.log").read_text()
    tuned = TrainedModel.from_bundle(tiny_clone.folder / "TUNED").autoencoder.state_dict()
    wanted = model.autoencoder.state_dict()
    same = [name for name in wanted if "quantizer" not in name and torch.equal(wanted[name], tuned[name])]
    assert len(same) == len([name for name in wanted if "quantizer" not in name]), "nothing was learned"


def test_the_bundles_folder_goes_to_the_hub_and_monai_fetches_it(tiny_clone, hub, documented):
    bundle, given = tiny_clone.folder / "bundle", variables(hub, tiny_clone.folder)
    tiny_model(condition=POSITIONS).save(bundle / "models")
    (bundle / "README.md").write_bytes((PAGE.parents[1] / "bundle/README.md").read_bytes())
    tiny_clone.run(command_of(documented, "hf upload"), **given)
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    kept = {name: content for name, content in hub.files("OWNER/BUNDLE").items() if name != ".gitattributes"}
    assert kept == files
    tiny_clone.run(command_of(documented, "monai.bundle download"), **given)
    home = tiny_clone.folder / "DOWNLOADS" / BUNDLE_NAME
    assert {name: (home / name).read_bytes() for name in files} == files
    assert len(TrainedModel.from_bundle(home).priors) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_exported_and_drawn_from_without_torch(tiny_clone, documented):
    pytest.importorskip("onnxruntime")
    model = tiny_model(condition=POSITIONS)
    model.save_pretrained(tiny_clone.folder / "MODEL")
    for word in ("export.json", "onnx_sampling.py"):
        tiny_clone.run(command_of(documented, word))
    drawn = np.load(tiny_clone.folder / "slices.npz")
    expected = model.sample(4, seed=7, position_mm=65.0).codes
    assert float(np.mean(drawn["codes_0"] == expected[0].numpy())) > 0.9
    assert drawn["images"].shape == (4, 1, 16, 16)
