"""A bundle's run at a tiny size: slices, an untrained but complete model, and the options that fit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from factories import tiny_autoencoder, tiny_model
from tiny_training import run, workflow, write_slices

from monai_vqgen.bundles import run_stage
from monai_vqgen.networks import ConditionEncoder, HierarchicalVQVAE

CODES, SIZE = 8, (16, 16)
COUNTS = {"training": 4, "validation": 2, "test": 2}
NETWORK = {
    "network_def::channels": 8,
    "network_def::residual_channels": 4,
    "network_def::num_codes": CODES,
}
PRIORS = {"prior_def::channels": 8, "prior_def::num_layers": 1, "prior_def::attention_every": 0}


class TinyRun(NamedTuple):
    """Attributes: `folder`: `slices/`, `codes/`, `model.pt` and the priors; `network`: the model in evaluation mode."""

    folder: Path
    network: HierarchicalVQVAE

    def options(self, config: str, output: Path) -> dict[str, Any]:
        """What makes a config of the bundle run on this folder, as options of its command line."""
        options: dict[str, Any] = {"output_dir": str(output), "device": "cpu"}
        if config == "train":
            options |= NETWORK
        if config != "train":
            options["model"] = str(self.folder / "model.pt")
        if config == "train_prior":
            options |= PRIORS
        if config != "sample":
            options["dataset_dir"] = str(self.folder / ("codes" if config == "train_prior" else "slices"))
        return options


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    """Slices, their codes, and a model with its priors."""
    folder = tmp_path_factory.mktemp("tiny_run")
    _write_slices(folder / "slices")
    network = tiny_autoencoder(CODES)
    encoder = ConditionEncoder({"position_mm": (40.0, 50.0)})
    tiny_model(SIZE, autoencoder=network, condition=encoder, num_layers=1).save(folder)
    where = {"dataset_dir": str(folder / "slices"), "model": str(folder / "model.pt")}
    run_stage("extract_codes", options={**where, "output_dir": str(folder / "codes")})
    return TinyRun(folder, network)


def _write_slices(folder: Path) -> None:
    datalist: dict[str, Any] = {"plane": "axial", "image_size": SIZE, "pixel_mm": 3.0}
    (folder / "images").mkdir(parents=True)
    for split, count in COUNTS.items():
        datalist[split] = []
        for i in range(count):
            name = f"images/{split}{i}.nii.gz"
            image = np.random.default_rng(i).random((*SIZE, 1), dtype=np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / name)
            datalist[split].append({"image": name, "subject": f"{split}{i}", "plane": "axial", "position_mm": 40.0 + i})
    (folder / "datalist.json").write_text(json.dumps(datalist))


@pytest.fixture(scope="session")
def slices(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    write_slices(folder)
    return folder


@pytest.fixture(scope="session")
def trained(slices, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    flow = workflow("train", dataset_dir=slices, output_dir=folder, image_interval=2)
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()
    return folder


@pytest.fixture(scope="session")
def codes(slices, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    run(
        "extract_codes",
        dataset_dir=slices,
        model=trained / "model.pt",
        output_dir=folder,
        mirror_training=True,
        kind=None,
    )
    return folder


@pytest.fixture(scope="session")
def priors(codes, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    for level in (0, 1):
        options = {"dataset_dir": codes, "output_dir": folder, "model": trained / "model.pt", "image_interval": 2}
        flow = workflow("train_prior", level=level, **options)
        flow.initialize()
        assert flow.check_properties() == []
        flow.run()
        flow.finalize()
    return folder
