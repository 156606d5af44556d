"""A network's recorded arguments build the same network again, whatever its class."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import (
    DecoderOnlyPrior,
    EMACodebook,
    FiniteScalarQuantizer,
    GatedPixelCNN,
    GenerativeVQVAE,
    GradientCodebook,
    HierarchicalVQVAE,
    MaskedPixelCNN,
)
from monai_vqgen.networks.architecture import architecture, build

NETWORKS = {
    "gated": lambda: GatedPixelCNN(8, channels=8, num_layers=2, coarser_codes=[4, 6], condition_dim=2),
    "masked": lambda: MaskedPixelCNN(8, channels=8, num_blocks=2),
    "decoder only": lambda: DecoderOnlyPrior(8, channels=8, num_layers=1, num_heads=2),
    "autoencoder": lambda: HierarchicalVQVAE(
        3, 2, out_channels=2, strides=(4,), channels=8, residual_channels=4, quantizers=[GradientCodebook(8, 4)]
    ),
    "generative": lambda: GenerativeVQVAE(
        3, strides=(4, 2), widths=(8, 8, 16), quantizers=[EMACodebook(8, 4), FiniteScalarQuantizer([3, 5])]
    ),
    "mixed quantizers": lambda: HierarchicalVQVAE(
        channels=8, residual_channels=4, quantizers=[EMACodebook(8, 4, decay=0.9), FiniteScalarQuantizer([3, 5])]
    ),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_built_again_from_its_record(make):
    network = make()
    again = build(json.loads(json.dumps(architecture(network))))
    assert type(again) is type(network)
    assert architecture(again) == architecture(network)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_copies_keep_the_record(make):
    network = make()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert architecture(twin) == architecture(network)
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), network.parameters(), strict=True))


def test_arguments_that_json_cannot_hold_are_named():
    class Odd(GatedPixelCNN):
        def __init__(self, extra: object) -> None:
            super().__init__(4, channels=8, num_layers=1, attention_every=0)
            self.extra = extra

    with pytest.raises(InputError, match=r"Odd was built with extra=<object"):
        architecture(Odd(object()))
