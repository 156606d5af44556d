"""Weights that were trained without a code for blank cells get one: what encodes stays, and the priors can go on."""

from __future__ import annotations

import pytest
import torch
from factories import POSITIONS, tiny_model, write_slices

from monai_vqgen.errors import InputError
from monai_vqgen.models import TrainedModel
from monai_vqgen.transforms import LoadSlice
from tools.blank_cells import add_blank_cells


def test_codes_of_content_stay_blank_cells_get_the_new_one_and_only_the_last_decoder_changes(tmp_path):
    old = tiny_model((96, 96), condition=POSITIONS)
    old.save(tmp_path / "old")
    write_slices(tmp_path / "slices", (96, 96))
    add_blank_cells(tmp_path / "slices", tmp_path / "new", model=str(tmp_path / "old"), steps=3)
    new = TrainedModel.from_bundle(tmp_path / "new")
    assert new.autoencoder.codebook_sizes == (9, 9)
    assert [prior.num_codes for prior in new.priors] == [9, 9]
    image = LoadSlice()(tmp_path / "slices/images/test0.nii.gz").as_tensor()[None]
    before, after = old.encode(image), new.encode(image)
    assert all((grid == 8).any() and (grid != 8).any() for grid in after)
    assert torch.equal(before[0][after[0] != 8], after[0][after[0] != 8])
    ours, theirs = old.autoencoder.state_dict(), new.autoencoder.state_dict()
    changed = {name[:13] for name, value in ours.items() if name in theirs and not torch.equal(value, theirs[name])}
    assert changed == {"upsamplers.1."}
    for level, quantizer in enumerate(new.autoencoder.quantizers):
        assert torch.equal(quantizer.quantizer.embeddings_kd, old.autoencoder.quantizers[level].embeddings_kd)


def test_priors_keep_their_rows_and_get_the_mean_of_those_of_blank_cells(tmp_path):
    old = tiny_model((96, 96))
    old.save(tmp_path / "old")
    write_slices(tmp_path / "slices", (96, 96))
    add_blank_cells(tmp_path / "slices", tmp_path / "new", model=str(tmp_path / "old"), steps=1)
    new = TrainedModel.from_bundle(tmp_path / "new")
    for was, now in zip(old.priors, new.priors, strict=True):
        for name, value in was.state_dict().items():
            row = now.state_dict()[name]
            if value.shape == row.shape:
                assert torch.equal(row, value)
            else:
                assert torch.equal(row[:8], value)
                assert (value.amin(0) <= row[8]).all()
                assert (row[8] <= value.amax(0)).all()


def test_weights_that_have_such_a_code_are_refused(tmp_path):
    from factories import tiny_autoencoder

    tiny_model((16, 16), autoencoder=tiny_autoencoder(blank_threshold=0.01)).save(tmp_path / "old")
    write_slices(tmp_path / "slices", (16, 16))
    with pytest.raises(InputError, match="has a code for blank cells"):
        add_blank_cells(tmp_path / "slices", tmp_path / "new", model=str(tmp_path / "old"))
