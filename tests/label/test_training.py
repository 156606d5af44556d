"""A training job on the server's studies: progress, weights that are kept or served, and no job without its server."""

from __future__ import annotations

import signal

import psutil
import pytest
import requests
import torch

JOB = {"batch_size": 8, "max_minutes": 3}


@pytest.fixture
def own_server(tools, tmp_path, studies):
    """A server whose bundle a test may change."""
    root = tools.make_bundle(tmp_path / "bundle")
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for path in studies.glob("*.nii.gz"):
        (volumes / path.name).symlink_to(path)
    conf = ("--conf", "bundle", str(root))
    with tools.serving(tools.make_app(tmp_path / "app"), volumes, tmp_path / "log", *conf) as server:
        tools.wait_until_up(server)
        yield server, root


def test_a_job_puts_weights_beside_the_served_ones_and_tells_its_progress(client, bundle, tools):
    before = (bundle / "models" / "model.pt").read_bytes()
    client.train_start("autoencoder", {**JOB, "max_epochs": 2, "fine_tune": True})
    status = tools.job_done(client)
    assert status["status"] == "DONE", status
    assert (bundle / "models" / "model.pt").read_bytes() == before
    models = sorted(path.name for path in (bundle / "models").glob("model_trained_*.pt"))
    assert (bundle / "models" / models[0]).with_suffix(".json").is_file()
    assert len(models) == 1
    served = torch.load(bundle / "models" / "model.pt", weights_only=True)
    weights = torch.load(bundle / "models" / models[0], weights_only=True)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in served.items()}
    assert any(not torch.equal(weights[name], served[name]) for name in served)
    stats = client.info()["train_stats"]["autoencoder"]
    assert stats["epoch"] == stats["max_epochs"] == 2
    assert len(stats["loss"]) == len(stats["validation_loss"]) == 2
    details = "\n".join(status["details"])
    assert "progress: 3 of 3" in details
    assert models[0] in details


def test_a_job_that_cannot_work_ends_with_the_reason(client, tools):
    client.train_start("autoencoder", {"max_epochs": -1})
    status = tools.job_done(client)
    assert status["status"] == "ERROR"
    assert "max_epochs is -1" in "\n".join(status["details"])
    client.info()


def test_replaced_weights_are_served_and_priors_of_the_earlier_ones_are_refused(own_server, tools, tmp_path):
    server, root = own_server
    client = tools.label_client(server, tmp_path)
    earlier = (root / "models" / "model.pt").read_bytes()
    _, first = client.infer("reconstruction", "axial", {})
    sampling = f"{server.url}/infer/sampling?image=none&output=json"
    assert requests.post(sampling, timeout=tools.SECONDS).status_code == 200
    client.train_start("autoencoder", {**JOB, "max_epochs": 1, "replace": True})
    status = tools.job_done(client)
    assert status["status"] == "DONE", status
    (kept,) = (root / "models").glob("model_before_*.pt")
    assert kept.read_bytes() == earlier
    assert (root / "models" / "model.pt").read_bytes() != earlier
    _, second = client.infer("reconstruction", "axial", {})
    assert second["autoencoder_fingerprint"] != first["autoencoder_fingerprint"]
    refused = requests.post(sampling, timeout=tools.SECONDS)
    assert refused.status_code == 409
    assert "another autoencoder" in refused.json()["detail"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_server_that_ends_in_the_middle_of_a_job_leaves_no_process(own_server, tools, tmp_path, how):
    server, root = own_server
    client = tools.label_client(server, tmp_path)
    client.train_start("autoencoder", {**JOB, "max_epochs": 10_000})
    tools.wait_for(lambda: client.info()["train_stats"]["autoencoder"].get("epoch", 0) > 0, what="the first epoch")
    jobs = psutil.Process(server.process.pid).children(recursive=True)
    assert jobs
    server.process.send_signal(how)
    assert server.process.wait(timeout=tools.SECONDS) != 0
    _, alive = psutil.wait_procs(jobs, timeout=tools.SECONDS)
    for job in alive:
        job.kill()
    assert not alive
    assert not list((root / "models").glob("model_*_*_*.pt"))
