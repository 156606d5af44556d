"""The bundle's trainings at a tiny size, by MONAI's own workflow: what every test of them starts from."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_vqgen.errors import VQGenError
from monai_vqgen.networks import HierarchicalVQVAE

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "bundle" / "configs"
CODES = 8
QUANTIZER = {"_target_": "monai_vqgen.networks.EMACodebook", "num_codes": CODES, "dim": 4}
PRIOR = {
    "_target_": "monai_vqgen.networks.GatedPixelCNN",
    "num_codes": "$@store.codebook_sizes[@level]",
    "coarser_codes": "$@store.codebook_sizes[:@level]",
    "channels": 8,
    "num_layers": 1,
    "attention_every": 0,
    "condition_dim": "@condition_dim",
}
TINY = {
    "network_def": {
        "_target_": "monai_vqgen.networks.HierarchicalVQVAE",
        "channels": 8,
        "residual_channels": 4,
        "quantizers": [QUANTIZER, QUANTIZER],
    },
    "prior_def": PRIOR,
    "batch_size": 4,
    "max_epochs": 2,
}


def write_slices(folder: Path, size: int = 16) -> None:
    """A disc of its own radius and brightness on each slice."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    datalist: dict = {"plane": "coronal", "image_size": [size, size], "pixel_mm": 3.472}
    (folder / "images").mkdir(parents=True)
    for split, count in {"training": 8, "validation": 4, "test": 2}.items():
        datalist[split] = []
        for i in range(count):
            disc = (rows**2 + columns**2 < random.uniform(0.05, 0.2)) * random.uniform(0.4, 1.0)
            name = f"images/{split}{i}.nii.gz"
            nib.save(nib.Nifti1Image(disc[:, :, None].astype(np.float32), np.eye(4)), folder / name)
            record = {"image": name, "subject": f"{split}{i}", "plane": "coronal", "position_mm": 40.0 + i}
            datalist[split].append(record)
    (folder / "datalist.json").write_text(json.dumps(datalist))


def workflow(
    name: str, *, overlay: Path | Sequence[Path] | None = None, kind: str | None = "train", **options
) -> ConfigWorkflow:
    overlays = [overlay] if isinstance(overlay, Path) else overlay or []
    files = [str(CONFIGS / f"{name}.json"), *map(str, overlays)]
    tiny = {} if overlay else TINY
    if name == "extract_codes":
        tiny = {"batch_size": 3}
    given = copy.deepcopy(options)  # MONAI writes nested options into the very objects it is given
    return ConfigWorkflow(
        config_file=files,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(REPOSITORY / "bundle"),
        device="$torch.device('cpu')",
        **{
            **copy.deepcopy(tiny),
            **{key: str(value) if isinstance(value, Path) else value for key, value in given.items()},
        },
    )


def run(name: str, **options) -> ConfigWorkflow:
    flow = workflow(name, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def start(name: str, **options) -> None:
    """All that a training does before its first step."""
    steps = ConfigParser.load_config_file(CONFIGS / f"{name}.json")["run"]
    assert steps[-1] == "$@train::trainer.run()"
    flow = workflow(name, run=steps[:-1], **options)
    flow.initialize()
    flow.run()


def own_error(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, VQGenError):
        error = error.__cause__
    return error


def trained_network(trained: Path) -> HierarchicalVQVAE:
    network = ConfigParser({"network": TINY["network_def"]}).get_parsed_content("network")
    network.load_state_dict(torch.load(trained / "model.pt", weights_only=True))
    return network
