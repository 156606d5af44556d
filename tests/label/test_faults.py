"""What cannot work is refused with a reason; the server stays up, and one that cannot start ends by itself."""

from __future__ import annotations

import json
import socket

import pytest
import requests
import torch

from monai_vqgen.networks import HierarchicalVQVAE
from monai_vqgen.weights import save_weights

REFUSED = [
    ("sampling", {"num_samples": 10_000}, 400, "num_samples is 10000"),
    ("sampling", {"num_samples": 0}, 400, "num_samples is 0"),
    ("sampling", {"num_samples": "many"}, 400, "num_samples is 'many'"),
    ("sampling", {"temperature": -1.0}, 400, "temperature is -1.0"),
    ("sampling", {"seed": -5}, 400, "seed is -5"),
    ("sampling", {"position_mm": 500}, 400, "position_mm=500"),
    ("sampling", {"sex": "X"}, 400, "sex='X'"),
    ("sampling", {"device": "cuda:9"}, 400, "device is 'cuda:9'"),
    ("reconstruction", {"plane": "oblique"}, 400, "plane is 'oblique'"),
    ("reconstruction", {"pixel_mm": 1e-9}, 400, "pixel_mm is 1e-09"),
    ("reconstruction", {"batch_size": 1e9}, 400, "batch_size is 1000000000.0"),
    ("reconstruction", {"pixel_mm": 0.1}, 400, "give a larger pixel_mm"),
    ("completion", {"box": [0, 0, 4, 4]}, 400, "is not a slice"),
    ("anomaly", {"threshold": 0}, 400, "threshold is 0"),
    ("anomaly", {"match": "perhaps"}, 400, "match is 'perhaps'"),
    ("anomaly_map", {"position_mm": 60}, 400, "not on position_mm"),
    ("unknown", {}, 404, "there is no model 'unknown'"),
    ("sampling", {"model": ["sampling"]}, 404, "there is no model ['sampling']"),
    ("sampling", {"device": ["cpu"]}, 400, "device is ['cpu']"),
    ("sampling", {"label": "a\0b"}, 404, "there is no mask"),
    ("reconstruction", {"save_label": True, "label_tag": "../../outside"}, 400, "'../../outside' names no file"),
    ("reconstruction", {"label_tag": ["final"]}, 400, "['final'] names no file"),
]


@pytest.mark.parametrize(("model", "params", "status", "message"), REFUSED)
def test_a_wrong_parameter_is_refused_with_its_reason(server, model, params, status, message):
    url = f"{server.url}/infer/{model}?image=axial"
    answer = requests.post(url, data={"params": json.dumps(params)}, timeout=300)
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert requests.get(f"{server.url}/info/", timeout=300).status_code == 200


def test_no_other_file_of_the_server_is_read(server, studies):
    for params, image in (({}, str(studies / "axial.nii.gz")), ({"image": "/etc/hostname"}, "axial"), ({}, "nobody")):
        url = f"{server.url}/infer/reconstruction?image={image}"
        answer = requests.post(url, data={"params": json.dumps(params)}, timeout=300)
        assert answer.status_code == 404
        assert "there is no image" in answer.json()["detail"]


def test_a_mask_is_sent_and_not_named(server, studies):
    url = f"{server.url}/infer/completion"
    for label in (str(studies / "slices" / "picture.png"), "/etc/hostname"):
        with (studies / "slices" / "slice.nii.gz").open("rb") as file:
            params = json.dumps({"label": label})
            answer = requests.post(url, data={"params": params}, files={"file": file}, timeout=300)
        assert answer.status_code == 404
        assert "send it as a file" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("what", "asked", "name", "message"),
    [
        ("image", {"image": "../outside"}, "x.nii.gz", "'../outside' names no file"),
        ("image", {"image": "/outside"}, "x.nii.gz", "'/outside' names no file"),
        ("image", {"image": ".hidden"}, "x.nii.gz", "'.hidden' names no file"),
        ("image", {"image": "x" * 101}, "x.nii.gz", "names no file"),
        ("image", {"image": "datastore_v2"}, "x.json", "send a file of one of the kinds"),
        ("label", {"image": "axial", "tag": "../../outside"}, "x.nii.gz", "'../../outside' names no file"),
        ("label", {"image": "axial", "tag": "final"}, "x.json", "send a file of one of the kinds"),
    ],
)
def test_names_that_clients_give_lead_to_no_other_folder_and_no_other_kind_of_file(
    server, studies, what, asked, name, message
):
    folder = server.log.parent
    before = sorted(folder.rglob("*"))
    field = {"image": "file", "label": "label"}[what]
    files = {field: (name, (studies / "axial.nii.gz").read_bytes())}
    answer = requests.put(f"{server.url}/datastore/{what}", params=asked, files=files, timeout=300)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
    assert sorted(folder.rglob("*")) == before


def test_an_image_and_a_label_are_kept_under_the_names_that_clients_give(server, studies):
    volume = (studies / "axial.nii.gz").read_bytes()
    files = {"file": ("x.nii.gz", volume)}
    url = f"{server.url}/datastore"
    assert requests.put(f"{url}/image", params={"image": "new one"}, files=files, timeout=300).status_code == 200
    asked = {"image": "new one", "tag": "reader 2"}
    answer = requests.put(f"{url}/label", params=asked, files={"label": ("x.nii.gz", volume)}, timeout=300)
    assert answer.status_code == 200
    kept = requests.get(f"{url}/label", params={"label": "new one", "tag": "reader 2"}, timeout=300)
    assert kept.content == volume
    assert requests.delete(f"{url}/image", params={"id": "new one"}, timeout=300).status_code == 200


def test_a_damaged_upload_is_refused(server, studies, tmp_path):
    whole = (studies / "axial.nii.gz").read_bytes()
    with (tmp_path / "half.nii.gz").open("wb") as file:
        file.write(whole[: len(whole) // 2])
    with (tmp_path / "half.nii.gz").open("rb") as file:
        answer = requests.post(f"{server.url}/infer/reconstruction", files={"file": file}, timeout=300)
    assert answer.status_code == 400
    assert "unreadable" in answer.json()["detail"]


def test_a_wrong_trainer_or_training_inside_the_server_is_refused(server):
    assert requests.post(f"{server.url}/train/nothing", json={}, timeout=300).status_code == 404
    answer = requests.post(f"{server.url}/train/autoencoder?run_sync=true", json={}, timeout=300)
    assert answer.status_code == 400
    assert "run_sync" in answer.json()["detail"]


def test_a_server_without_studies_answers_and_says_what_it_lacks(tools, tmp_path, bundle, studies):
    (tmp_path / "empty").mkdir()
    conf = ("--conf", "bundle", str(bundle))
    with tools.serving(tools.make_app(tmp_path / "app"), tmp_path / "empty", tmp_path / "log", *conf) as server:
        tools.wait_until_up(server)
        client = tools.label_client(server, tmp_path)
        assert client.info()["datastore"]["total"] == 0
        assert client.infer("reconstruction", "", {}, file=str(studies / "coronal.nii.gz"))[0]
        client.train_start("autoencoder", {})
        status = tools.job_done(client)
        assert status["status"] == "ERROR"
        assert "no unlabeled studies" in "\n".join(status["details"])
        assert "holds no images" in server.log.read_text()


def missing(root):
    (root / "models" / "model.pt").unlink()


def other_shape(root):
    torch.manual_seed(0)
    save_weights(HierarchicalVQVAE(channels=16, residual_channels=4), root / "models" / "model.pt")


@pytest.mark.parametrize(("spoil", "message"), [(missing, "has no weights"), (other_shape, "does not fit")])
def test_a_bundle_that_cannot_be_served_ends_the_server_with_its_reason(tools, tmp_path, studies, spoil, message):
    root = tools.make_bundle(tmp_path / "bundle")
    spoil(root)
    conf = ("--conf", "bundle", str(root))
    with tools.serving(tools.make_app(tmp_path / "app"), studies, tmp_path / "log", *conf) as server:
        assert server.process.wait(timeout=tools.SECONDS) != 0
    assert message in server.log.read_text()


def test_a_port_in_use_ends_the_server_with_its_reason(tools, tmp_path, bundle, studies):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app, conf = tools.make_app(tmp_path / "app"), ("--conf", "bundle", str(bundle))
        with tools.serving(app, studies, tmp_path / "log", *conf, port=taken.getsockname()[1]) as server:
            assert server.process.wait(timeout=tools.SECONDS) != 0
    assert "address already in use" in server.log.read_text()
