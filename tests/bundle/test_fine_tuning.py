"""Trainings that start from trained weights."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_training import CONFIGS, TINY, own_error, run, start, workflow

from monai_vqgen.bundles import run_stage
from monai_vqgen.data import make_phantoms
from monai_vqgen.errors import CheckpointError

OTHER = {"network_def": {**TINY["network_def"], "channels": 16}, "prior_def": {**TINY["prior_def"], "channels": 16}}


@pytest.mark.parametrize("stage", ["train", "train_prior"])
def test_another_architecture_is_refused_before_anything_is_touched(codes, trained, priors, tmp_path, stage):
    data, source = (tmp_path / "not read", trained) if stage == "train" else (codes, priors)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_text("mine")
    options = {"output_dir": tmp_path / "run", "overwrite": True, "start_from": source, **OTHER}
    with pytest.raises(RuntimeError) as caught:
        start(stage, dataset_dir=data, **options)
    assert isinstance(own_error(caught.value), CheckpointError)
    block = "network_def" if stage == "train" else "prior_def"
    assert f'channels 8 there and 16 here: give --{block}::channels "8"' in str(own_error(caught.value))
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").iterdir()] == [("model.pt", "mine")]


@pytest.mark.parametrize("overlay", [[], ["train_generative.json"]])
def test_a_training_begins_with_the_weights_and_resumes_with_no_others(slices, trained, tmp_path, overlay):
    more = (
        {
            "network_def": TINY["network_def"],
            "batch_size": 4,
            "adversarial_start": 0,
            "discriminator_def::num_layers_d": 1,
        }
        if overlay
        else {}
    )
    files = {"overlay": [CONFIGS / name for name in overlay], **more}
    options = {"dataset_dir": slices, "output_dir": tmp_path / "run", "max_epochs": 1, **files}
    flow = workflow("train", start_from=trained, learning_rate=0.0, **options)
    flow.initialize()
    begun = flow.parser.get_parsed_content("network").state_dict()
    wanted = torch.load(trained / "model.pt", weights_only=True)
    assert all(torch.equal(begun[name], value) for name, value in wanted.items())
    flow.run()
    run("train", start_from=trained, resume=True, learning_rate=0.0, **options)
    with pytest.raises(RuntimeError) as caught:
        run("train", resume=True, learning_rate=0.0, **options)
    assert "start_from" in str(own_error(caught.value))


def losses(folder, name, metric) -> list[float]:
    return json.loads((folder / name).read_text())["validation"][metric]


@pytest.mark.slow
def test_fine_tuning_beats_training_from_nothing_at_equal_steps(tmp_path):
    """Phantoms of other seeds: one epoch after ten of others' is better than the first one, by a wide margin."""
    for seed in (1, 2):
        scans, cut = tmp_path / f"scans{seed}", tmp_path / f"slices{seed}"
        make_phantoms(scans, 8, seed=seed, voxel_mm=5.0, progress=False)
        sizes = {"image_size": [32, 32], "pixel_mm": 7.0, "position_step_mm": 8.0, "num_workers": 0}
        run_stage("extract_slices", options={"dataset_dir": str(scans), "output_dir": str(cut), **sizes})
    run("train", dataset_dir=tmp_path / "slices1", output_dir=tmp_path / "first", max_epochs=10)
    for name, more in {"scratch": {}, "tuned": {"start_from": tmp_path / "first"}}.items():
        run("train", dataset_dir=tmp_path / "slices2", output_dir=tmp_path / name, max_epochs=1, **more)
    scratch, tuned = (losses(tmp_path / name, "history.json", "loss")[-1] for name in ("scratch", "tuned"))
    assert tuned < 0.6 * scratch, (tuned, scratch)

    for number in (1, 2):
        places = {"dataset_dir": tmp_path / f"slices{number}", "output_dir": tmp_path / f"codes{number}"}
        run("extract_codes", model=tmp_path / "first" / "model.pt", kind=None, **places)
    run("train_prior", level=1, dataset_dir=tmp_path / "codes1", output_dir=tmp_path / "first", max_epochs=10)
    for name, more in {"scratch": {}, "tuned": {"start_from": tmp_path / "first"}}.items():
        run("train_prior", level=1, dataset_dir=tmp_path / "codes2", output_dir=tmp_path / name, max_epochs=1, **more)
        said = f"start_from: {tmp_path / 'first'}" in (tmp_path / name / "model_prior_level1.log").read_text()
        assert said == bool(more)
    history = "history_prior_level1.json"
    scratch, tuned = (losses(tmp_path / name, history, "bits_per_code")[-1] for name in ("scratch", "tuned"))
    assert tuned < scratch - 0.1, (tuned, scratch)
