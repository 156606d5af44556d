"""Scores are distances from healthy slices of the same position, in deviations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import POSITIONS, tiny_model

from monai_vqgen.anomaly import HealthySlices, Signals, anomaly_signals
from monai_vqgen.anomaly.healthy import model_fingerprint
from monai_vqgen.errors import CheckpointError, InputError

PLACES = [40.0] * 40 + [70.0] * 40


def signals(values_bn: np.ndarray) -> Signals:
    """The same value at each pixel of a slice."""
    values = np.broadcast_to(values_bn[:, :, None, None], (*values_bn.shape, 8, 8)).astype(np.float32)
    return Signals(("bits_0", "intensity"), values, np.ones((len(values), 8, 8), dtype=bool))


def drawn() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 2)) + np.array([[0.0, 0.0]] * 40 + [[10.0, 5.0]] * 40)


def test_means_and_deviations_are_those_of_the_position():
    values = drawn()
    healthy = HealthySlices.fit([(signals(values), PLACES)])
    first, last = values[:40], values[40:]
    np.testing.assert_allclose(healthy.mean_pnhw[0, :, 0, 0], first.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(healthy.mean_pnhw[-1, :, 0, 0], last.mean(0), rtol=1e-3)
    np.testing.assert_allclose(healthy.deviation_pnhw[0, :, 0, 0], first.std(0) + 0.3 * values.std(0), rtol=1e-3)


def test_few_bits_are_no_lesion_and_a_dark_place_may_be_one():
    healthy = HealthySlices.fit([(signals(drawn()), PLACES)])
    mean, deviation = healthy.mean_pnhw[0, :, 0, 0], healthy.deviation_pnhw[0, :, 0, 0]
    steps = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, -3.0], [4.0, 3.0]])
    found = healthy.score(signals(mean + steps * deviation), [40.0] * 4)
    np.testing.assert_allclose(found.scores_bhw[:, 0, 0], [0, 4, 3, 5], atol=1e-3)
    np.testing.assert_allclose(found.distances_bnhw[:, :, 0, 0], steps, atol=1e-3)
    assert found.outside == ()


def test_a_slice_outside_the_known_positions_is_judged_by_the_nearest_and_the_result_says_so():
    healthy = HealthySlices.fit([(signals(drawn()), PLACES)])
    far, near = (healthy.score(signals(drawn()[-1:]), [place]) for place in (120.0, 70.0))
    np.testing.assert_array_equal(far.scores_bhw, near.scores_bhw)
    assert far.outside == ("1 slices lie outside 37 to 73 mm and are judged by the nearest known position",)


def test_a_files_statistics_are_those_that_were_saved_and_other_weights_are_refused(tmp_path):
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    healthy = HealthySlices.fit([(signals(drawn()), PLACES)], fingerprint=model_fingerprint(model))
    healthy._replace(threshold=3.5).save(tmp_path / "healthy.safetensors")
    read = HealthySlices.load(tmp_path / "healthy.safetensors", model=model)
    assert (read.names, read.threshold) == (healthy.names, 3.5)
    for name in ("mean_pnhw", "deviation_pnhw", "positions_p", "quantiles"):
        np.testing.assert_array_equal(getattr(read, name), getattr(healthy, name))
    assert read.mean_pnhw.dtype == np.float32
    assert (tmp_path / "healthy.safetensors").stat().st_size < healthy.mean_pnhw.nbytes * 1.1 + 2000
    assert read.brain_mm is None
    sized = healthy._replace(threshold=1.0, brain_mm=np.array([175.5, 148.0]))
    sized.save(tmp_path / "sized")
    assert HealthySlices.load(tmp_path / "sized").brain_mm.tolist() == [175.5, 148.0]
    with pytest.raises(CheckpointError, match="other weights"):
        HealthySlices.load(tmp_path / "healthy.safetensors", model=other)
    for size in ([0.0, 148.0], [175.5, np.inf], [175.5]):
        sized._replace(brain_mm=np.array(size)).save(tmp_path / "damaged")
        with pytest.raises(CheckpointError, match="rows and columns"):
            HealthySlices.load(tmp_path / "damaged")
    content = (tmp_path / "healthy.safetensors").read_bytes()
    for damaged in (b"", b"{}", content[:100], content[:-1]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no statistics"):
            HealthySlices.load(tmp_path / "damaged")


@pytest.mark.parametrize("draws", [0, 3], ids=["without restorations", "with them"])
def test_a_model_scores_slices_in_batches_of_any_size_and_moves_positions_into_its_range(draws):
    model = tiny_model(condition=POSITIONS)
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    places = [42.0, 50.0, 60.0, 70.0, 110.0]
    features = POSITIONS.encode([{"position_mm": min(place, 97.0)} for place in places])
    known = anomaly_signals(model, images, condition=features, draws=draws)
    healthy = HealthySlices.fit([(known, places)])
    whole = model.anomaly_map(images, healthy, position_mm=places)
    np.testing.assert_allclose(whole.scores_bhw, healthy.score(known, places).scores_bhw, rtol=1e-4)
    assert whole.outside == ("position_mm of 1 slices lies outside 40 to 97 and was moved into it",)
    model.batch_size = 2
    np.testing.assert_allclose(
        model.anomaly_map(images, healthy, position_mm=places).scores_bhw, whole.scores_bhw, rtol=1e-3, atol=1e-3
    )


def test_statistics_of_other_weights_and_unknown_conditions_are_refused_where_slices_are_scored():
    model, images = tiny_model(condition=POSITIONS, seed=1), torch.rand(2, 1, 16, 16)
    features = POSITIONS.encode([{"position_mm": 40.0}, {"position_mm": 50.0}])
    healthy = HealthySlices.fit([(anomaly_signals(model, images, condition=features), [40.0, 50.0])])
    other = healthy._replace(fingerprint=model_fingerprint(tiny_model(condition=POSITIONS, seed=2)))
    with pytest.raises(CheckpointError, match="other weights"):
        model.anomaly_map(images, other, position_mm=[40.0, 50.0])
    model.anomaly_map(images, healthy._replace(fingerprint=model_fingerprint(model)), position_mm=[40.0, 50.0])
    with pytest.raises(InputError, match="not on agee"):
        model.anomaly_map(images, healthy, position_mm=[40.0, 50.0], agee=30)


@pytest.mark.parametrize("place", [[40.0], [40.0, float("nan")], []])
def test_positions_that_do_not_fit_are_refused(place):
    model = tiny_model()
    images = torch.rand(2, 1, 16, 16)
    healthy = HealthySlices.fit([(anomaly_signals(model, images), [40.0, 50.0])])
    with pytest.raises(InputError, match="positions"):
        model.anomaly_map(images, healthy, position_mm=place)
    with pytest.raises(InputError, match="same options"):
        healthy.score(signals(drawn()), PLACES)
    with pytest.raises(InputError, match="healthy slices"):
        HealthySlices.fit([])
