"""A code for blank cells: the last one, with a vector of its own, from which the quantizer learns nothing."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.networks import EMACodebook
from monai_vqgen.networks.quantizers.blank import BlankCells

FILLED = torch.tensor([[[True, False, True], [False, False, True]]])


def quantizer(**options: object) -> BlankCells:
    torch.manual_seed(0)
    return BlankCells(EMACodebook(6, 4, kmeans=False, **options))


@pytest.mark.parametrize("learning", [False, True])
def test_blank_cells_have_the_last_code_and_its_vector_and_the_others_those_of_the_quantizer(learning: bool) -> None:
    blank = quantizer()
    latents = torch.randn(1, 4, 2, 3)
    alone = blank.quantizer(latents)
    found = blank.learned(latents, FILLED) if learning else blank.marked(latents, FILLED)
    assert blank.num_codes == 7
    assert found.codes_bs.tolist() == torch.where(FILLED, alone.codes_bs, 6).tolist()
    expected = torch.where(FILLED[:, None], alone.embeddings_bds, blank.blank_d.view(1, 4, 1, 1))
    torch.testing.assert_close(found.embeddings_bds, expected)
    if not learning:  # which moves the vectors
        torch.testing.assert_close(blank.lookup(found.codes_bs), expected)


def test_what_lies_in_blank_cells_changes_neither_codebook_nor_loss() -> None:
    latents, other = torch.randn(2, 1, 4, 2, 3)
    other = torch.where(FILLED[:, None], latents, other)
    first, second = quantizer(decay=0.5), quantizer(decay=0.5)
    losses = [blank.learned(x, FILLED).loss for blank, x in ((first, latents), (second, other))]
    assert losses[0] == losses[1]
    assert torch.equal(first.quantizer.embeddings_kd, second.quantizer.embeddings_kd)
    second.learned(torch.randn(1, 4, 2, 3), FILLED)
    assert not torch.equal(first.quantizer.embeddings_kd, second.quantizer.embeddings_kd)
