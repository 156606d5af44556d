"""What the shipped weights and two tiny trainings gave when these values were recorded, they still give.

The values stand in `expected.json`, beside the machine that recorded them (fixture `machine`). To record them anew,
after a change that means to change results:

    OMP_NUM_THREADS=1 python -m pytest tests/golden --regenerate

Two comparisons:

- *Strict*, where capability, threads, versions and arithmetic are those of the recording machine: codes bit for bit,
  numbers within 1e-6 of their size.
- *Tolerant* elsewhere. Another processor adds in another order, so that float32 results move in their last digits. A
  code whose runner-up is that near may change: a near-tie. Near-ties cannot be excluded, so they are counted against
  the bounds below, each with its reason.

Everything goes through the bundle's stages, as a user would call them. The two places that know more of the inside
than that are `drawn_codes` and `tiny_training`.
"""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from tiny_training import CODES, CONFIGS, PRIOR, REPOSITORY, run, write_slices

from monai_vqgen.data import make_phantoms

EXPECTED = Path(__file__).with_name("expected.json")
STRICT = 1e-6  # of a number's size, or of 1 where it is smaller

# One code that flips changes all codes drawn after it: whole samples are counted. About 1 in 100,000 draws is decided
# by less than another processor's rounding, and a sample takes 1,280.
MOST_OTHER_SAMPLES = 1  # of 4
# A voxel of the reconstruction is off by rounding alone unless a code near it flipped, which moves some 50 x 50 pixels
# of one slice: 1 % of a volume's voxels at most.
VOXEL_ROUNDING, MOST_OTHER_VOXELS = 1e-4, 0.01  # of the volume's range; of the voxels looked at
# Figures over all slices: a few flipped codes among some thousand.
FIGURES = 2e-3
# A classifier's share of right answers on some forty held-out images: its training carries rounding into its weights,
# and five of the images may then lie on the other side. Twenty steps of it were recorded, not the 500 of a report.
CLASSIFIED = ("/two_sample/cnn/accuracy", "/two_sample/cnn/standard_error")
CLASSIFIER_STEPS, CLASSIFIERS = 20, 0.125
# Rounding grows from step to step, and a flipped code of 512 in a batch moves a loss by about its share.
LOSSES = 5e-3

TIMES = ("seconds", "ratio_to_whole_grid")  # of metrics.json: they are measured with a clock


@pytest.fixture
def expected(request, machine):
    """`expected(name, measured)`: the recorded values, and whether to compare strictly; records on `--regenerate`."""

    def look_up(name: str, measured: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        content = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
        if request.config.getoption("--regenerate", default=False):
            content[name] = {"machine": machine, **measured}
            EXPECTED.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        recorded = json.loads(json.dumps(content[name]))
        return recorded, recorded.pop("machine") == machine

    return look_up


def stage(name: str, **options: Any) -> ConfigWorkflow:
    """Run a stage of the bundle with the weights that ship: what `python -m monai.bundle run` does."""
    flow = ConfigWorkflow(
        config_file=str(CONFIGS / f"{name}.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(REPOSITORY / "bundle"),
        **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
    )
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def drawn_codes(flow: ConfigWorkflow) -> list[NDArray]:
    """Grids `(samples, *grid)` a level of a finished `sample.json`, which drew them in one batch."""
    inferer = flow.parser.get_parsed_content("inferer")
    count, settings = len(inferer.conditions), inferer.settings._asdict()
    samples = inferer.model.sample(count, seed=inferer.seed, conditions=inferer.conditions, **settings)
    return [codes.cpu().numpy() for codes in samples.codes]


def pack(*arrays: NDArray) -> str:
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return base64.b64encode(file.getvalue()).decode()


def unpack(text: str) -> list[NDArray]:
    with np.load(io.BytesIO(base64.b64decode(text))) as arrays:
        return [arrays[name] for name in arrays.files]


def every_number(content: Any, name: str = "") -> dict[str, float | None]:
    """Every number, null included, under its path; times left out."""
    if isinstance(content, dict):
        named = [(key, value) for key, value in content.items() if key not in TIMES]
    elif isinstance(content, list):
        named = [(str(index), value) for index, value in enumerate(content)]
    else:
        return {} if isinstance(content, str | bool) else {name: content}
    return {key: number for part, value in named for key, number in every_number(value, f"{name}/{part}").items()}


def assert_near(measured: dict[str, float | None], recorded: dict[str, float | None], tolerance: float) -> None:
    """Each recorded number is there and within the tolerance of its size (of 1 for smaller ones)."""
    off = {}
    for name, value in recorded.items():
        found = measured.get(name, math.nan)
        if value is None or found is None:
            near = value is found
        else:
            near = abs(found - value) <= tolerance * max(1.0, abs(value))
        if not near:
            off[name] = (found, value)
    assert not off, f"(found, recorded), beyond {tolerance:g}: {off}"


def test_samples_at_seed_7(tmp_path, expected):
    conditions = {"position_mm": 65, "sex": "f", "age": 30}
    options = {"num_samples": 4, "batch_size": 4, "seed": 7, "temperature": [0.8, 1.0], "top_k": None, "top_p": None}
    faithful = REPOSITORY / "bundle/models/model.pt"
    flow = stage("sample", model=faithful, output_dir=tmp_path / "out", device="cpu", **options, **conditions)
    codes = drawn_codes(flow)
    listed = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    files = [nib.load(tmp_path / "out" / entry["image"]) for entry in listed]
    images = np.stack([file.get_fdata(dtype=np.float32)[..., 0] for file in files])
    measured = {
        "codes": pack(*(grid.astype(np.uint16) for grid in codes)),
        "images": pack(images[:, 3::5, 3::5]),
        "affine": files[0].affine.tolist(),
    }
    recorded, strict = expected("sample", measured)
    assert files[0].affine == pytest.approx(np.array(recorded["affine"]))
    same = np.ones(4, dtype=bool)
    for grid, recorded_grid in zip(codes, unpack(recorded["codes"]), strict=True):
        same &= (grid == recorded_grid).reshape(4, -1).all(1)
    assert np.count_nonzero(~same) <= (0 if strict else MOST_OTHER_SAMPLES)
    (pixels,) = unpack(recorded["images"])
    np.testing.assert_allclose(images[same, 3::5, 3::5], pixels[same], rtol=0, atol=STRICT if strict else 1e-4)


def test_reconstruction_of_a_volume(tmp_path, expected):
    """An oblique head of odd size, drawn anew from its seed."""
    (scan,) = make_phantoms(tmp_path / "scans", 1, seed=7, voxel_mm=3.1, progress=False)
    options = {"plane": "axial", "pixel_mm": 1.736, "intensity": "input", "dicom": False, "batch_size": 16}
    stage("inference", dataset_dir=scan.parent, output_dir=tmp_path / "out", device="cpu", **options)
    (path,) = (tmp_path / "out").rglob("*_recon.nii.gz")
    result, source = nib.load(path), nib.load(scan)
    voxels = result.get_fdata()
    scale = float(source.get_fdata().max())
    voxels = voxels / scale
    axes = range(voxels.ndim)
    measured = {
        "shape": list(voxels.shape),
        "voxels": pack(voxels.ravel()[::37].astype(np.float32)),
        "means": [voxels.mean(tuple(a for a in axes if a != axis)).tolist() for axis in axes],
    }
    recorded, strict = expected("reconstruction", measured)
    assert list(voxels.shape) == list(source.shape) == recorded["shape"]
    np.testing.assert_array_equal(result.affine, source.affine)
    (reference,) = unpack(recorded["voxels"])
    off = np.abs(voxels.ravel()[::37] - reference)
    assert np.mean(off > (STRICT if strict else VOXEL_ROUNDING)) <= (0 if strict else MOST_OTHER_VOXELS)
    for found, means in zip(measured["means"], recorded["means"], strict=True):
        np.testing.assert_allclose(found, means, rtol=0, atol=STRICT if strict else FIGURES)


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_phantoms(folder / "scans", 9, seed=7, voxel_mm=2.5, progress=False)
    stage(
        "extract_slices",
        dataset_dir=folder / "scans",
        output_dir=folder / "slices",
        seed=7,
        positions_mm=[float(position) for position in range(40, 100, 5)],
        pixel_mm=1.736,
        image_size=[128, 128],
        fractions=[0.5, 0.12, 0.38],
        num_workers=1,
    )
    path = folder / "slices" / "datalist.json"
    datalist = json.loads(path.read_text())
    for split in ("training", "validation", "test"):  # phantoms of the ages and the words that the priors know
        for item in datalist[split]:
            item |= {"age": 20.0 + item["age"] % 30, "sex": item["sex"].lower()}
    del datalist["seal"]  # changed on purpose
    path.write_text(json.dumps(datalist))
    return folder / "slices"


@pytest.mark.slow
def test_every_number_of_an_evaluation(tmp_path, expected, slices):
    """Bits per code among them."""
    options = {"num_samples": 32, "batch_size": 16, "seed": 7, "temperature": [0.8, 1.0], "top_k": None, "top_p": None}
    report = {"codecs": True, "sample_report": True, "classifier_steps": CLASSIFIER_STEPS}
    stage("evaluate", dataset_dir=slices, output_dir=tmp_path / "out", device="cpu", **report, **options)
    metrics = every_number(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    recorded, strict = expected("evaluation", {"metrics": metrics})
    values = recorded["metrics"]
    classified = {name: value for name, value in values.items() if name.endswith(CLASSIFIED)}
    assert len(classified) == 8
    assert_near(metrics, classified, STRICT if strict else CLASSIFIERS)
    others = {name: value for name, value in values.items() if name not in classified}
    assert_near(metrics, others, STRICT if strict else FIGURES)


def tiny_training(stage_name: str, folder: Path, **options: Any) -> dict[str, float]:
    """The loss of each of ten steps, one an epoch, and the last epoch's on the validation slices."""
    run(stage_name, output_dir=folder, seed=7, batch_size=8, max_epochs=10, val_interval=1, **options)
    (path,) = folder.glob("history*.json")
    history = json.loads(path.read_text())
    assert history["train"]["iteration"] == list(range(1, 11))
    losses = {f"step {step}": loss for step, loss in enumerate(history["train"]["loss"], start=1)}
    return losses | {"validation": history["validation"]["loss"][-1]}


def test_first_ten_losses_of_two_tiny_trainings(tmp_path, expected):
    write_slices(tmp_path / "slices")
    network, codes, priors = (tmp_path / name for name in ("network", "codes", "priors"))
    model = network / "model.pt"
    measured = {"autoencoder": tiny_training("train", network, dataset_dir=tmp_path / "slices")}
    run("extract_codes", kind=None, dataset_dir=tmp_path / "slices", output_dir=codes, model=model)
    # The recorded priors were both built, coarsest first, before either was trained: the finer one's initial weights
    # come from that place of the random stream.
    tiny = {**PRIOR, "num_codes": CODES, "coarser_codes": []}
    both = [tiny, {**tiny, "coarser_codes": [CODES]}]
    for level in (0, 1):
        options = {"dataset_dir": codes, "model": model, "level": level, "both": both, "prior_def": f"$@both[{level}]"}
        measured[f"prior {level}"] = tiny_training("train_prior", priors / str(level), **options)
    recorded, strict = expected("training", measured)
    for name, losses in measured.items():
        assert_near(losses, recorded[name], STRICT if strict else LOSSES)
