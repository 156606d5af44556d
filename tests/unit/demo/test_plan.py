"""A plan follows its rules for voxel sizes, time and memory, and is a file that every stage takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from factories import write_slices
from monai.bundle import ConfigParser

from monai_vqgen.data import ScanOptions, make_phantoms
from monai_vqgen.data.survey import Survey, survey_folder
from monai_vqgen.demo import plan as planning
from monai_vqgen.demo.plan import Costs, Design, fitting_batch, plan_run, propose, try_design
from monai_vqgen.demo.sizes import read_size
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.networks import HierarchicalVQVAE

HEAD_MM = (176.0, 146.0, 136.0)  # front to back, left to right, top to bottom


def scans(spacing_mm=(1.0, 1.0, 1.0), extent_mm=HEAD_MM, *, training=48, **more) -> Survey:
    """Scans that are all alike, or one row a scan."""
    rows = {"spacing_mm": np.atleast_2d(spacing_mm).astype(float), "extent_mm": np.atleast_2d(extent_mm).astype(float)}
    return Survey("scans", training, **rows, sizes=np.empty((0, 2), int), **{**KNOWN, **more})


def slices(sizes, *, training=100, plane=None) -> Survey:
    none = np.empty((0, 3))
    return Survey("slices", training, none, none, np.array(sizes), **{**KNOWN, "plane": plane})


KNOWN = {"plane": None, "complete": True, "skipped": []}


def machine(seconds_a_megapixel: float = 0.0, *, batches: tuple[int, ...] = (4, 2, 2)):
    """Costs that grow with the pixels of a slice; each of three trainings takes a third."""

    def trial(design: Design, most: int) -> Costs:
        seconds = max(1e-6, seconds_a_megapixel * np.prod(design.image_size) / 1e6)
        return Costs([min(batch, most) for batch in batches], [seconds / 3] * 3)

    return trial


def planned(survey: Survey, *, minutes: float = 45.0, trial=None, **more) -> dict:
    """Options by name."""
    return {each.name: each.value for each in propose(survey, minutes=minutes, trial=trial or machine(), **more).values}


# --- planes and positions


@pytest.mark.parametrize(
    ("spacing_mm", "plane"),
    [
        ((1.0, 1.0, 1.0), "axial"),
        ((0.9, 0.9, 3.0), "axial"),
        ((1.2, 1.0, 1.0), "axial"),  # nearly as fine as the others
        ((3.0, 0.9, 0.9), "coronal"),
        ((0.9, 4.0, 0.9), "sagittal"),
    ],
)
def test_the_plane_is_the_finest_and_axial_among_equals(spacing_mm, plane):
    assert planned(scans(spacing_mm))["plane"] == plane


def test_the_plane_that_is_asked_for_is_taken():
    assert planned(scans(), plane="coronal")["plane"] == "coronal"
    assert planned(scans(), plane="coronal")["image_size"] == [144, 152]  # 136 and 146 mm, and two pixels


def test_positions_are_the_middle_of_the_brain():
    found = planned(scans())
    assert (found["position_start_mm"], found["position_stop_mm"]) == (41.0, 95.0)
    with_neck = planned(scans(extent_mm=(200.0, 160.0, 260.0)))
    assert (with_neck["position_start_mm"], with_neck["position_stop_mm"]) == (45.0, 105.0)


@pytest.mark.parametrize(
    ("apart_mm", "training", "step_mm"),
    [
        (1.0, 500, 3.0),  # many scans: slices that are alike are left out
        (1.0, 48, 2.5),  # 54 mm / 2.5 mm x 48 scans are a thousand
        (1.0, 10, 1.0),  # few: every plane
        (0.4, 10, 0.5),
        (4.0, 500, 4.0),
        (2.04, 10, 2.0),
        (2.06, 10, 2.1),
    ],
)
def test_slices_are_closer_where_there_are_fewer_scans_and_never_closer_than_their_planes(apart_mm, training, step_mm):
    assert planned(scans((1.0, 1.0, apart_mm), training=training), plane="axial")["position_step_mm"] == step_mm


# --- pixels and networks


def test_own_pixels_where_the_time_allows_and_the_brain_fits_wherever_it_lies():
    found = planned(scans((0.9, 0.9, 1.0)))
    assert found["pixel_mm"] == 0.9
    assert found["image_size"] == [200, 168]  # 176 / 0.9 + 2 = 198, 146 / 0.9 + 2 = 165, in eights
    assert planned(scans((2.0, 2.0, 2.0)), minutes=1000)["image_size"] == [96, 80]  # 90, 75


def test_pixel_size_is_the_median_and_the_box_is_the_largest():
    found = planned(scans([(1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 2.0, 1.0)], [HEAD_MM, (190, 130, 140), HEAD_MM]))
    assert (found["pixel_mm"], found["image_size"]) == (1.0, [192, 152])  # 192, 148


@pytest.mark.parametrize(("seconds", "longest"), [(10, 184), (20, 128), (45, 96), (90, 64)])
def test_pixels_are_coarser_where_the_time_is_short(seconds, longest):
    """Of 45 minutes 0.64 are steps, of which 4,000 are wanted: 0.43 s each."""
    found = planned(scans(), trial=machine(seconds))
    assert max(found["image_size"]) == longest
    assert found["network_def::channels"] == 64
    assert max(HEAD_MM[:2]) / found["pixel_mm"] + 2 <= longest


def test_a_time_that_is_too_short_is_told_with_one_that_is_not():
    plan = propose(scans(), minutes=45, trial=machine(900))
    assert (plan.option("image_size"), plan.option("network_def::channels")) == ([64, 56], 32)
    (note,) = plan.notes
    assert note == (
        "45 minutes allow 535 steps of each training, and 4000 are wanted: expect blur, or give 337 minutes"
    )
    (hopeless,) = propose(scans(), minutes=2, trial=machine(900)).notes
    assert "expect blobs without anatomy" in hopeless
    (why,) = [each.reason for each in plan.values if each.name == "pixel_mm"]
    passed = [f"{side} pixels with 64 channels are too slow" for side in (184, 128, 96, 64)]
    assert why == "; ".join(passed), "the one that is proposed is not among them"
    assert not propose(scans(), minutes=337, trial=machine(900)).notes


def test_a_network_that_does_not_fit_into_memory_is_passed_over_and_told():
    def trial(design, most):
        return Costs([0 if max(design.image_size) > 100 else 4, 2, 2], [1e-4] * 3)

    plan = propose(scans(), minutes=45, trial=trial)
    assert plan.option("image_size") == [96, 80]
    (why,) = [each.reason for each in plan.values if each.name == "pixel_mm"]
    assert why == "; ".join(f"{side} pixels with 64 channels are too large for the memory" for side in (184, 128))
    nowhere = propose(scans(), minutes=45, trial=machine(batches=(0, 0, 0)))
    assert nowhere.notes == ["even 64 pixels with 32 channels are too large for the memory: give more memory"]
    assert nowhere.option("batch_size") == 1


@pytest.mark.parametrize(
    ("spacing", "strides", "size"),
    [(4.0, (4, 2), [48, 40]), (2.0, (8, 4), [96, 80]), (0.5, (16, 8, 4), [368, 304])],
)
def test_levels_follow_the_image_size_whose_sides_the_coarsest_stride_divides(spacing, strides, size):
    trial = machine() if len(strides) < 3 else lambda design, most: Costs([4, 2, 2, 2], [1e-6] * 4)
    found = planned(scans((spacing,) * 3), trial=trial)
    assert (found["network_def::strides"], found["image_size"]) == (strides, size)
    assert len(found["priors"]) == len(strides)


# --- trainings


def test_epochs_make_the_steps_that_the_time_allows():
    found = planned(scans(training=48), minutes=45, trial=machine(10))  # 0.093 s of 184 x 152 pixels and 3 trainings
    count = 48 * 22  # 54 mm in steps of 2.5
    steps = int(0.8 * 0.8 * 45 * 60 / (10 * 184 * 152 / 1e6))
    assert found["max_epochs"] == -(-steps // (count // 4)) == 24
    assert [prior["max_epochs"] for prior in found["priors"]] == [-(-steps // count)] * 2  # mirrored, in twos
    assert found["max_minutes"] == found["priors"][0]["max_minutes"] == 12.0
    assert found["val_interval"] == 1
    assert planned(scans(training=48), minutes=4500, trial=machine(10))["max_epochs"] == -(-20_000 // (count // 4))


def test_a_batch_is_what_fits_and_a_small_part_of_the_slices():
    fitting = machine(batches=(64, 32, 32))
    assert planned(scans(training=500), most=64, trial=fitting)["batch_size"] == 64
    assert planned(scans(training=30), most=64, trial=fitting)["batch_size"] == 32  # of 1,080
    assert planned(scans(training=3), most=64, trial=fitting)["batch_size"] == 4  # of 162


@pytest.mark.parametrize(("plane", "mirrored"), [("axial", True), ("coronal", True), ("sagittal", False)])
def test_only_left_and_right_are_mirrored(plane, mirrored):
    found = planned(scans(), plane=plane)
    assert (found["mirror_probability"], found["mirror_training"]) == (0.5 * mirrored, mirrored)


def test_ready_slices_keep_their_pixels_and_get_no_positions():
    found = planned(slices([(50, 70), (60, 65)]))
    assert found["image_size"] == [64, 72]
    assert not {"plane", "pixel_mm", "position_start_mm"} & found.keys()
    assert found["mirror_probability"] == 0
    assert planned(slices([(60, 60)], plane="axial"))["mirror_probability"] == 0.5
    slow = propose(slices([(60, 60)]), minutes=1, trial=machine(1000))
    assert (slow.option("image_size"), slow.option("network_def::channels")) == ([60, 60], 32)


def test_pictures_in_color_get_a_network_of_three_channels_and_gray_ones_need_not_be_told():
    tried = []

    def trial(design: Design, most: int) -> Costs:
        tried.append(design.in_channels)
        return machine()(design, most)

    assert planned(slices([(60, 60)])._replace(channels=3), trial=trial)["network_def::in_channels"] == 3
    assert tried == [3]
    assert "network_def::in_channels" not in planned(slices([(60, 60)]))


def test_a_network_for_colors_is_tried_with_colors(monkeypatch):
    design = Design.of((32, 32), channels=16, in_channels=3)
    built = []

    class Recorded(HierarchicalVQVAE):
        def __init__(self, **options):
            built.append(options["in_channels"])
            super().__init__(**options)

    monkeypatch.setattr(planning, "HierarchicalVQVAE", Recorded)
    costs = try_design(design, most=2, memory=1e12, device=torch.device("cpu"))
    assert built == [3]
    assert list(costs.batches) == [2, 1, 1]


def test_what_should_be_known_of_the_data_is_told():
    mixed = scans([(1.0, 1.0, 1.0), (1.1, 1.0, 3.0)], [HEAD_MM] * 2, complete=False, skipped=[{"file": "a"}])
    assert propose(mixed, minutes=45, trial=machine()).notes == [
        "mixed spacing, 1.00 to 3.00 mm from top to bottom: its median counts",
        "looked at 2 files, evenly spaced among all",
        "files that will be skipped: 1, such as a",
    ]
    assert planned(mixed)["on_trim"] == "warn"
    assert "on_trim" not in planned(scans())
    assert propose(slices([(8, 8), (9, 8)]), minutes=45, trial=machine()).notes[0].startswith("slices of several sizes")


# --- the trial


def test_a_batch_grows_with_memory_and_shrinks_with_pixels():
    assert [fitting_batch(1e8, gigabytes * 1e9, 64) for gigabytes in (1, 1.3, 2, 4, 100)] == [0, 1, 4, 8, 64]
    device = torch.device("cpu")
    small, large = (Design.of((side, side), channels=16) for side in (64, 128))
    tight = planning.PROGRAM_BYTES + 16e6
    fits = {design: try_design(design, most=64, memory=tight, device=device).batches[0] for design in (small, large)}
    assert fits[small] > fits[large] > 0
    costs = try_design(small, most=4, memory=1e12, device=device)
    assert list(costs.batches) == [4, 2, 2]
    assert all(seconds > 0 for seconds in costs.seconds)


# --- the file


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.setattr(planning, "try_design", lambda design, most, **_: machine()(design, most))


def test_the_file_is_read_by_monai_as_an_overlay_of_each_stage_and_by_us_as_a_size(tmp_path, instant):
    make_phantoms(tmp_path / "scans", 4, seed=1, voxel_mm=4.0, progress=False)
    path = tmp_path / "plan.yaml"
    plan = plan_run(tmp_path / "scans", path, minutes=30, plane="coronal")
    text, content = path.read_text(), yaml.safe_load(path.read_text())
    assert text.splitlines()[0] == f"# monai-vqgen train {tmp_path / 'scans'} --size {path}"
    for value in plan.values:
        if value.name != "network_def::_target_":
            assert f"{value.name.rpartition('::')[2]}: " in text
            assert f"# {value.reason}" in text
    for config, names in {
        "extract_slices": ("plane", "position_step_mm", "pixel_mm", "image_size"),
        "train": ("network_def", "batch_size", "max_epochs", "image_size"),
        "extract_codes": ("network_def", "mirror_training"),
    }.items():
        parser = ConfigParser()
        parser.read_config([f"bundle/configs/{config}.json", str(path)])
        defaults = ConfigParser.load_config_file(f"bundle/configs/{config}.json")
        for name in names:
            assert name in defaults
            assert parser[name] == content[name]
    size = read_size(path)
    assert size.slices["plane"] == "coronal"
    assert size.autoencoder["network_def"] == content["network_def"]
    assert size.codes == {"mirror_training": True}
    assert [prior["prior_def::channels"] for prior in size.priors] == [64, 64]
    given = {**size.slices, **size.autoencoder, **size.codes, "priors": list(size.priors)}
    assert given == content, "every option has a stage, and one alone"


def test_an_option_that_no_stage_has_is_refused_when_a_plan_is_read_as_a_size(tmp_path, instant):
    write_slices(tmp_path / "slices")
    plan_run(tmp_path / "slices", tmp_path / "plan.yaml")
    with open(tmp_path / "plan.yaml", "a") as file:
        file.write("max_epoch: 3\n")
    with pytest.raises(InputError, match="unknown section 'max_epoch'"):
        read_size(tmp_path / "plan.yaml")


def test_ready_slices_are_trained_where_they_are_without_conditions(tmp_path, instant):
    (tmp_path / "slices").mkdir()
    for split in ("train", "val"):
        write_slices(tmp_path / split, counts={"training": 2})
        (tmp_path / split / "images").rename(tmp_path / "slices" / split)
    plan = plan_run(tmp_path / "slices", tmp_path / "plan.yaml")
    first, *others = plan.commands(tmp_path / "slices", "plan.yaml")
    assert "train.json','plan.yaml'" in first
    assert f"--dataset_dir {tmp_path / 'slices'} " in first
    assert [command.count("--condition_names") for command in others] == [0, 0, 0]  # the stage sees what is known


def test_a_plan_that_may_have_been_changed_is_not_overwritten_unasked(tmp_path, instant):
    write_slices(tmp_path / "slices")
    path = tmp_path / "plan.yaml"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="changes of yours"):
        plan_run(tmp_path / "slices", path)
    assert path.read_text() == "mine"
    plan_run(tmp_path / "slices", path, overwrite=True)
    assert "network_def" in path.read_text()


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"minutes": float("nan")}, {"memory_gb": -1}, {"plane": "oblique"}])
def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        plan_run(tmp_path / "nowhere", tmp_path / "plan.yaml", **wrong)


def test_which_scans_are_meant_is_written_for_the_extraction(tmp_path, instant):
    make_phantoms(tmp_path / "scans", 3, seed=1, voxel_mm=8.0, progress=False)
    plan_run(tmp_path / "scans", tmp_path / "plan.yaml", scans=ScanOptions("T2w", "sub-.."))
    content = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert (content["suffix"], content["subject_pattern"]) == ("T2w", "sub-..")
    assert read_size(tmp_path / "plan.yaml").slices["suffix"] == "T2w"


def test_phantoms_of_another_voxel_size_get_other_pixels(tmp_path):
    found = {}
    for voxel_mm in (4.0, 8.0):
        make_phantoms(tmp_path / str(voxel_mm), 4, seed=1, voxel_mm=voxel_mm, progress=False)
        found[voxel_mm] = planned(survey_folder(tmp_path / str(voxel_mm)), trial=machine())
    assert found[4.0]["pixel_mm"] == pytest.approx(4.0, rel=0.12)
    assert found[8.0]["pixel_mm"] == pytest.approx(8.0, rel=0.12)
    assert found[8.0]["network_def::strides"] == (4, 2)
