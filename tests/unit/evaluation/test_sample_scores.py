"""The report of samples finds planted copies and planted positions, and takes each figure of the images it names."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monai_vqgen.errors import InputError
from monai_vqgen.evaluation import pictures as module
from monai_vqgen.evaluation.pictures import save_closest_pairs, save_positions
from monai_vqgen.evaluation.sample_scores import (
    SMALLEST_SIDE,
    ImageKinds,
    ImageSet,
    check_sample_report,
    independent_codes,
    sample_metrics,
)
from monai_vqgen.metrics import (
    FilterBankFeatures,
    aligned_neighbors,
    authenticity,
    density_coverage,
    frechet_score,
    linear_two_sample,
    pairwise_ms_ssim,
    precision_recall,
    split_two_samples,
)
from monai_vqgen.models.record import SamplingSettings
from monai_vqgen.models.samples import Samples

SIZE, RANGE_MM = 32, (20.0, 60.0)
OFF_MM = 5.0  # asked for, beyond where the sample lies
COPIED = {20: 3, 5: 7}  # sample: training slice; the second copy is mirrored and moved as well
DOWN, RIGHT = 2, -1


def slices(count: int, seed: int, *, slices_each: int = 4) -> ImageSet:
    """Blurred noise, much of it the subject's own, under a bottom edge whose brightness is the position."""
    generator = torch.Generator().manual_seed(seed)
    subjects = torch.arange(count) // slices_each
    noise = torch.rand(count, 1, SIZE + 4, SIZE + 4, generator=generator)
    own = torch.rand(count, 1, SIZE + 4, SIZE + 4, generator=generator)[subjects]
    images = 0.6 * torch.nn.functional.avg_pool2d(0.3 * noise + 0.7 * own, 5, stride=1)
    positions = torch.empty(count).uniform_(*RANGE_MM, generator=generator)
    images[:, :, -8:] = (positions / 100)[:, None, None, None]
    records = [
        {"subject": f"{seed}-{subject}", "position_mm": position}
        for subject, position in zip(subjects.tolist(), positions.tolist(), strict=True)
    ]
    return ImageSet(images, records)


def space(images: torch.Tensor) -> torch.Tensor:
    """Brightness of the sixteen parts of an image: the last four tell the position."""
    return torch.nn.functional.avg_pool2d(images, SIZE // 4).flatten(1).double()


def planted() -> dict[str, ImageSet]:
    """Counts that all differ; two samples are training slices; all were asked for another position than theirs."""
    training, drawn = slices(48, 0), slices(44, 1)
    images = drawn.images.clone()
    (copy, source), (moved, moved_source) = COPIED.items()
    images[copy] = training.images[source]
    images[moved] = training.images[moved_source].roll((DOWN, RIGHT), (1, 2)).flip(2)
    at = [record["position_mm"] for record in drawn.records]
    at[copy], at[moved] = (training.records[i]["position_mm"] for i in COPIED.values())
    return {
        "samples": ImageSet(images, [{"position_mm": position + OFF_MM} for position in at]),
        "training": training,
        "test": slices(36, 2),
        "reconstructions": slices(40, 3),
        "independent": ImageSet(torch.rand(50, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(4))),
    }


@pytest.fixture(scope="module")
def kinds() -> dict[str, ImageSet]:
    return planted()


@pytest.fixture(scope="module")
def report(kinds) -> tuple[dict[str, Any], Any]:
    return sample_metrics(ImageKinds(**kinds), feature_space=space, classifier_steps=2)


def test_copies_of_training_slices_are_found_and_lead_the_closest_pairs(kinds, report):
    metrics, nearest = report
    pixels, features = (metrics["memorization"][name] for name in ("pixels", "features"))
    assert {(pair["image"], pair["training"]) for pair in pixels["closest"][:2]} == set(COPIED.items())
    assert [pair["distance"] for pair in pixels["closest"][:2]] == [0, 0]
    assert pixels["closest"][2]["distance"] > 0.01
    assert (features["closest"][0]["image"], features["closest"][0]["training"]) == (20, 3)
    for audit in (pixels, features):
        assert (audit["num_samples"], audit["num_held_out"]) == (44, 36)
    assert pixels["share_below"] >= 2 / 44
    assert nearest.mirrored_m[5]
    assert nearest.indices_m[[20, 5]].tolist() == [3, 7]


def test_the_threshold_is_that_of_the_test_slices(kinds, report):
    for name, (samples, held_out) in {
        "pixels": [aligned_neighbors(kinds[kind].images, kinds["training"].images)[0] for kind in ("samples", "test")],
        "features": [
            torch.cdist(space(kinds[kind].images), space(kinds["training"].images)).amin(1)
            for kind in ("samples", "test")
        ],
    }.items():
        audit = report[0]["memorization"][name]
        threshold = np.percentile(held_out.numpy(), 1)
        assert audit["threshold"] == pytest.approx(threshold)
        assert audit["share_below"] == pytest.approx(np.mean(samples.numpy() < threshold))
        assert audit["samples_median"] == pytest.approx(np.median(samples.numpy()))


def test_every_kind_is_cut_to_the_smallest_before_its_figures_are_compared(kinds, report):
    metrics, training = report[0], space(kinds["training"].images)
    assert (metrics["num_samples"], metrics["compared"], metrics["classifier_steps"]) == (44, 36, 2)
    assert metrics["neighbors"] == "slices of other subjects"
    for name, kind in {
        "samples": "samples", "real": "test", "reconstructions": "reconstructions", "independent_codes": "independent"
    }.items():  # fmt: skip
        images, whose = kinds[kind].images, kinds[kind].subjects()
        chosen = np.linspace(0, len(images) - 1, 36).round().astype(int)
        cut = space(images[chosen])
        assert metrics[name]["frechet"] == pytest.approx(frechet_score(training, cut).distance), name
        real = {"real_subjects": kinds["training"].subjects()}
        others = {"generated_subjects": None if whose is None else [whose[i] for i in chosen]}
        score, spread = precision_recall(training, cut, **real, **others), density_coverage(training, cut, **real)
        assert (metrics[name]["precision"], metrics[name]["recall"]) == (score.precision, score.recall), name
        assert (metrics[name]["density"], metrics[name]["coverage"]) == (spread.density, spread.coverage), name
        assert len(images) == 36 or metrics[name]["frechet"] != frechet_score(training, space(images)).distance, name


def test_each_kind_has_the_other_figures_of_its_own_images(kinds, report):
    metrics, training = report[0], kinds["training"]
    subjects = [record["subject"] for record in training.records]
    for name, kind in {"samples": "samples", "real": "test", "independent_codes": "independent"}.items():
        images = kinds[kind].images
        assert metrics[name]["pairwise_ms_ssim"] == pairwise_ms_ssim(images)._asdict(), name
        rate = authenticity(space(images), space(training.images), training_subjects=subjects).rate
        assert metrics[name]["authenticity"] == rate, name
    assert metrics["independent_codes"]["two_sample"]["linear"]["accuracy"] > 0.95  # noise is told from slices
    assert metrics["real"]["two_sample"]["linear"]["accuracy"] < 0.8  # slices are not told from slices
    test_subjects = [record["subject"] for record in kinds["test"].records]
    split = split_two_samples(36, 48, first_subjects=test_subjects, second_subjects=subjects)
    score = linear_two_sample(space(kinds["test"].images), space(training.images), split)
    assert metrics["real"]["two_sample"]["linear"] == score._asdict()
    assert metrics["real"]["two_sample"]["cnn"]["held_out"] == score.held_out


def test_the_positions_asked_for_are_those_that_samples_are_judged_by(kinds, report):
    position = report[0]["position"]
    assert position["samples_bias_mm"] == pytest.approx(-OFF_MM, abs=0.5)
    assert position["samples_mm"] == pytest.approx(OFF_MM, abs=0.5)
    assert position["held_out_mm"] < 0.5
    middle = kinds["training"].positions().quantile(0.5)  # of an even number of slices, as numpy's median
    for name, kind in {"constant_samples_mm": "samples", "constant_held_out_mm": "test"}.items():
        asked = np.array([record["position_mm"] for record in kinds[kind].records])
        assert position[name] == pytest.approx(np.abs(asked - float(middle)).mean())


def test_samples_that_were_asked_for_no_position_have_no_error_of_position():
    assert ImageSet(torch.zeros(2, 1, 8, 8), [{"position_mm": 1.0}, {}]).positions() is None
    assert ImageSet(torch.zeros(2, 1, 8, 8)).positions() is None


def test_without_mirrors_a_mirrored_copy_is_none_and_an_audit_without_a_threshold_is_null(kinds, caplog):
    test = ImageSet(kinds["test"].images.clone(), kinds["test"].records)
    test.images[[4, 9]] = kinds["training"].images[[0, 1]]
    with caplog.at_level(logging.WARNING):
        metrics, nearest = sample_metrics(
            ImageKinds(**{**kinds, "test": test}), feature_space=space, classifier_steps=1, mirror=False
        )
    assert not nearest.mirrored_m.any()
    assert nearest.distances_m[5] > 0.01
    assert nearest.distances_m[20] == 0
    assert metrics["memorization"] == {"pixels": None, "features": None}
    for name in ("pixels", "features"):
        assert f"No audit of memorization by {name}: held-out slices equal training slices" in caplog.text
    assert metrics["position"]["samples_bias_mm"] == pytest.approx(-OFF_MM, abs=0.5)  # the rest is there


def records(count: int, *subjects: str | None) -> list[dict[str, Any]]:
    return [{"image": f"{i}.png", "subject": subjects[i % len(subjects)]} for i in range(count)]


@pytest.mark.parametrize(
    ("num_samples", "training", "size", "message"),
    [
        (31, records(40, "a", "b"), None, "31 samples.*raise num_samples"),
        (32, records(31, "a", "b"), None, "31 training slices.*extract more"),
        (32, records(40, "a"), None, r"one subject \(a\)"),
        (32, records(40, "a", "b", "c", None), None, "10 of 40 training slices have no subject"),
        (32, records(40, "a", "b"), (64, 31), r"\(64, 31\) pixels.*at least 32"),
    ],
)
def test_what_cannot_be_reported_is_refused_with_the_mend(num_samples, training, size, message):
    splits = {"test slices": records(40, "c", "d"), "training slices": training}
    with pytest.raises(InputError, match=message):
        check_sample_report(num_samples, splits, image_size=size)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_classifiers_learn_for_a_whole_number_of_steps(steps):
    splits = {"test slices": records(40, "c", "d"), "training slices": records(40, "a", "b")}
    with pytest.raises(InputError, match=r"classifier_steps is .*whole number"):
        check_sample_report(32, splits, classifier_steps=steps)


def test_the_smallest_report_is_allowed_and_its_images_are_the_smallest_that_have_features():
    splits = {"training slices": records(32, "a", "b"), "test slices": records(32, None)}
    check_sample_report(32, splits, image_size=(SMALLEST_SIDE, SMALLEST_SIDE))
    FilterBankFeatures()(torch.rand(1, 1, SMALLEST_SIDE, SMALLEST_SIDE))
    with pytest.raises(InputError, match="at least 32"):
        FilterBankFeatures()(torch.rand(1, 1, SMALLEST_SIDE, SMALLEST_SIDE - 1))


def test_independent_codes_keep_the_histogram_of_each_position_and_nothing_between_them():
    grids, num_slices, drawn_count = ((2, 3), (3, 2), (4, 5)), 5, 4000
    slice_n = torch.arange(num_slices)
    codes = [  # slice * 100 + position
        (100 * slice_n[:, None] + torch.arange(int(np.prod(grid)))).view(num_slices, *grid) for grid in grids
    ]
    drawn = independent_codes(codes, num_samples=drawn_count, seed=3)
    slices_of = []
    for level, grid in zip(drawn, grids, strict=True):
        assert level.shape == (drawn_count, *grid)
        flat = level.flatten(1)
        assert (flat % 100 == torch.arange(flat.shape[1])).all()
        slices_of.append(flat // 100)
    both = torch.cat(slices_of, dim=1).numpy()
    counts = np.stack([(both == one).sum(0) for one in range(num_slices)])
    deviation = np.sqrt(drawn_count * 0.2 * 0.8)
    assert np.abs(counts - drawn_count / num_slices).max() < 5 * deviation
    # two positions, of one level or of two, come from one slice no more often than by chance
    first, second = np.triu_indices(both.shape[1], 1)
    together = (both[:, first] == both[:, second]).sum(0)
    assert np.abs(together - drawn_count / num_slices).max() < 5 * deviation
    again, other = (independent_codes(codes, num_samples=drawn_count, seed=seed) for seed in (3, 4))
    assert torch.equal(drawn[0], again[0])
    assert not torch.equal(drawn[0], other[0])


def drawn(images, positions_mm):
    """Samples with these images, asked for at these positions."""
    conditions = [{"sex": "f", "position_mm": float(position)} for position in positions_mm]
    return Samples(images, (), conditions, None, 5, SamplingSettings((0.8,), (None,), (0.9,)), 0.0)


@pytest.fixture
def shown(monkeypatch):
    """The rows and the title of each picture that is written."""
    pictures: list[tuple[list, str]] = []
    write = module.save_rows

    def keep(rows, path, *, title=""):
        pictures.append((list(rows), title))
        write(rows, path, title=title)

    monkeypatch.setattr(module, "save_rows", keep)
    return pictures


def test_the_closest_pairs_are_shown_nearest_first_and_as_they_were_aligned(kinds, tmp_path, shown):
    samples, training = kinds["samples"].images.clone(), kinds["training"].images
    samples[20] += 0.001  # so that the mirrored copy comes first
    nearest = aligned_neighbors(samples, training)
    save_closest_pairs(drawn(samples, range(len(samples))), training, nearest, tmp_path / "pairs.png", count=3)
    ((sample_row, training_row), title) = shown[0]
    assert sample_row.marks == [f"{i} mm f" for i in nearest.distances_m.argsort(stable=True)[:3]]
    assert title == "Synthetic samples: seed 5, temperature 0.8, top_p 0.9"
    assert len(sample_row.images_nhw) == len(training_row.images_nhw) == 3
    assert np.array_equal(training_row.images_nhw[:2], training[[7, 3], 0].numpy())
    np.testing.assert_allclose(sample_row.images_nhw[1], training[3, 0].numpy(), atol=0.0011)
    # moved down by 2 and left by 1, then mirrored: put back, its last rows and first column are lost
    lost = np.zeros((SIZE, SIZE), dtype=bool)
    lost[-DOWN:], lost[:, :-RIGHT] = True, True
    assert np.array_equal(sample_row.images_nhw[0][~lost], training[7, 0].numpy()[~lost])
    assert (sample_row.images_nhw[0][lost] == 0).all()
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 3 * SIZE


def test_a_sample_stands_in_the_column_of_the_position_it_was_asked_for(tmp_path, shown):
    positions = np.random.default_rng(0).permutation(np.linspace(10, 90, 33))
    images = torch.ones(33, 1, 8, 8) * torch.from_numpy(positions)[:, None, None, None] / 100  # bright: far down
    save_positions(drawn(images, positions), tmp_path / "positions.png", columns=4, rows=3)
    ((rows, title),) = shown
    assert title.startswith("Synthetic: seed 5")
    assert len(rows) == 3
    for row in rows:
        seen = 100 * row.images_nhw[:, 0, 0]
        assert (np.abs(seen - [20, 40, 60, 80]) <= 10).all()
        marks = [float(mark.removesuffix(" mm f")) for mark in row.marks]
        np.testing.assert_allclose(marks, seen, atol=0.51)
    assert len({float(image[0, 0]) for row in rows for image in row.images_nhw}) == 12  # each sample once
    assert (tmp_path / "positions.png").stat().st_size > 0
