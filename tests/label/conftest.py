"""A real MONAI Label server on small scans and an untrained but complete bundle; `make test-label` runs these tests.

They need the environment that `make label` builds; elsewhere they are not collected.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from factories import random_statistics, tiny_autoencoder, tiny_model
from PIL import Image

from monai_vqgen.bundles import bundle_root
from monai_vqgen.data import make_phantom
from monai_vqgen.data.io.nifti import write_slice_nifti, write_volume_nifti
from monai_vqgen.networks import ConditionEncoder
from tools.package_bundle import BUNDLE_NAME

collect_ignore_glob = [] if importlib.util.find_spec("monailabel") else ["test_*.py"]

REPOSITORY = Path(__file__).resolve().parents[2]
APP = REPOSITORY / "monai_vqgen" / "monailabel"
CODES, SIZE = 16, (32, 32)
SECONDS = 300  # for a start, an answer or a job that take 10 on two quiet cores: this ends a hang, it measures nothing
STORAGE = {"axial": "LPS", "coronal": "RSA", "sagittal": "PIR"}


class Server(NamedTuple):
    """A running server, and where what it prints goes."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """MONAI Label's client leaves its connections to the garbage collector; only here that is no error."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="session", autouse=True)
def no_endless_request() -> Iterator[None]:
    """A limit for MONAI Label's client, which has none of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    yield
    socket.setdefaulttimeout(before)


@contextlib.contextmanager
def serving(app: Path, studies: Path, log: Path, *conf: str, port: int | None = None) -> Iterator[Server]:
    """`monailabel start_server`, which may not be up yet; at the end it is gone with all that it started."""
    port = port or free_port()
    # Not the script `monailabel`: it runs whichever python comes first, and splits paths at blanks.
    command = [sys.executable, "-m", "monailabel.main", "start_server"]
    command += ["--app", str(app), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), *conf]
    environment = {**os.environ, "MONAI_LABEL_SESSION_PATH": str(app / "sessions")}  # else in the home folder
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        if process.poll() is None:
            _stop(process)


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    """Ask until it is so; fails the test when that takes too long."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} does not come within {SECONDS} seconds")
        time.sleep(0.3)


def wait_until_up(server: Server) -> None:
    import requests

    def up() -> bool:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{server.url}/info/", timeout=SECONDS).status_code == 200
        return False

    wait_for(up, what="the server")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server as a user does; it has to go within a minute, and so has what it started."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        for child in alive:
            child.kill()
    assert not alive, "the server has left processes behind"


def job_done(client: Any) -> dict[str, Any]:
    """Wait for the end of a training job; returns what the server says of it."""
    wait_for(lambda: client.train_status()["status"] not in ("SUBMITTED", "RUNNING"), what="the job's end")
    status: dict[str, Any] = client.train_status()
    return status


def make_app(folder: Path) -> Path:
    """An app folder as `make label-serve` makes it: MONAI Label writes into it."""
    folder.mkdir(parents=True)
    shutil.copy(APP / "main.py", folder / "main.py")
    return folder


def make_bundle(root: Path) -> Path:
    """A copy of the bundle with tiny weights."""
    shutil.copytree(bundle_root() / "configs", root / "configs")
    encoder = ConditionEncoder({"position_mm": (40.0, 100.0), "age": (20.0, 70.0)}, {"sex": ["F", "M"]})
    network = tiny_autoencoder(CODES)
    model = tiny_model(SIZE, autoencoder=network, condition=encoder, num_layers=1, record={"pixel_mm": 4.0})
    model.save(root / "models")
    random_statistics(model).save(root / "models" / "healthy.safetensors")
    return root


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """The tiny bundle; its name is that of the real one."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / BUNDLE_NAME)


@pytest.fixture(scope="session")
def studies(tmp_path_factory) -> Path:
    """Volumes stored axially, coronally and sagittally, with odd voxel sizes; a slice as NIfTI and as PNG."""
    folder = tmp_path_factory.mktemp("studies")
    for index, (name, orientation) in enumerate(STORAGE.items()):
        phantom = make_phantom(7, index, voxel_mm=5.0, orientation=orientation)
        write_volume_nifti(folder / f"{name}.nii.gz", phantom.voxels_s, phantom.affine)
    i, j = np.mgrid[-1 : 1 : SIZE[0] * 1j, -1 : 1 : SIZE[1] * 1j]
    image = np.where(i**2 + j**2 < 0.8, 0.5 + 0.4 * np.sin(4 * i) * np.cos(3 * j), 0).astype(np.float32)
    affine = np.array([[0, -4.0, 0, 60], [-4.0, 0, 0, 55], [0, 0, -4.0, 30], [0, 0, 0, 1]])
    (folder / "slices").mkdir()
    write_slice_nifti(folder / "slices" / "slice.nii.gz", image, affine, {"position_mm": 64.0})
    Image.fromarray((image * 255).astype(np.uint8)).save(folder / "slices" / "picture.png")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory, bundle, studies) -> Iterator[Server]:
    """Our app with the tiny bundle and the volumes."""
    folder = tmp_path_factory.mktemp("server")
    volumes = folder / "volumes"
    volumes.mkdir()
    for path in studies.glob("*.nii.gz"):
        shutil.copy(path, volumes / path.name)
    conf = ("--conf", "bundle", str(bundle))
    with serving(make_app(folder / "app"), volumes, folder / "server.log", *conf) as server:
        wait_until_up(server)
        yield server


@pytest.fixture(scope="session")
def client(server, tmp_path_factory) -> Any:
    """MONAI Label's own client."""
    return label_client(server, tmp_path_factory.mktemp("answers"))


def label_client(server: Server, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports cgi, which Python 3.11 calls deprecated
        from monailabel.client import MONAILabelClient
    return MONAILabelClient(server.url, tmpdir=str(folder))


@pytest.fixture(scope="session")
def command_line(tmp_path_factory, bundle, studies) -> Path:
    """What `inference.json` writes for the volumes, run by MONAI's command line."""
    output = tmp_path_factory.mktemp("command_line")
    only_volumes = tmp_path_factory.mktemp("volumes")
    for path in studies.glob("*.nii.gz"):
        shutil.copy(path, only_volumes / path.name)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "inference.json")]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(only_volumes), "--output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=SECONDS)
    return output


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Functions of this file for tests that run servers of their own."""
    functions = (serving, wait_for, wait_until_up, make_app, make_bundle, label_client, job_done)
    return SimpleNamespace(SECONDS=SECONDS, **{function.__name__: function for function in functions})
