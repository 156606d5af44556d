"""Signals of slices: smoothed within the brain, none of the background in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import tiny_autoencoder, tiny_model

from monai_vqgen.anomaly import anomaly_signals
from monai_vqgen.anomaly.signals import smooth_within
from monai_vqgen.errors import InputError


def test_smoothing_takes_nothing_from_outside_the_brain():
    brain = np.zeros((1, 20, 20), dtype=bool)
    brain[0, 5:15, 5:15] = True
    values = np.where(brain, 3.0, 1000.0)
    np.testing.assert_allclose(smooth_within(values, brain)[brain], 3.0, rtol=1e-5)


def test_signals_are_those_of_the_table_and_restorations_come_on_demand():
    model, images = tiny_model(), torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    signals = anomaly_signals(model, images)
    assert signals.names == ("bits_0", "bits_1", "residual", "intensity", "detail")
    assert signals.values_bnhw.shape == (2, 5, 16, 16)
    brain = images[:, 0].numpy() > 0.02
    bits = model.nll_maps(images)[1].numpy()
    np.testing.assert_allclose(signals.values_bnhw[:, 1], smooth_within(bits, brain), rtol=1e-5)
    more = anomaly_signals(model, images, draws=2, seed=1)
    assert more.names == (*signals.names, "restoration")
    assert (more.values_bnhw[:, 5] >= 0).all()
    assert more.values_bnhw[:, 5].any()


def test_colors_are_refused():
    model = tiny_model(autoencoder=tiny_autoencoder(in_channels=3, out_channels=3))
    with pytest.raises(InputError, match="one channel"):
        anomaly_signals(model, torch.rand(1, 3, 16, 16))
