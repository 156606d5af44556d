"""Finite scalar quantization against the levels written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_vqgen.errors import InputError
from monai_vqgen.networks import FiniteScalarQuantizer


def test_fsq_codes_enumerate_all_levels() -> None:
    quantizer = FiniteScalarQuantizer((4, 3, 2))
    embeddings = quantizer.lookup(torch.arange(24)[None])[0].t()
    expected = [[a, b, c] for c in (-1, 0) for b in (-1, 0, 1) for a in (-1, -0.5, 0, 0.5)]
    np.testing.assert_allclose(embeddings.numpy(), expected)
    wide = quantizer(3 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert wide.codes_bs.unique().numel() == 24


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: FiniteScalarQuantizer((8, 1)), "at least 2 levels"),
        (lambda: FiniteScalarQuantizer(()), "at least one dimension"),
    ],
)
def test_a_value_out_of_range_is_named(build, match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()
