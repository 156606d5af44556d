"""A split of a code store as training items, for any number of levels and axes."""

from __future__ import annotations

import pytest
import torch

from monai_vqgen.data import CodesDataset, CodeStore, save_codes
from monai_vqgen.errors import InputError


@pytest.mark.parametrize("grids", [[(2, 3)], [(2, 3), (4, 6)], [(1, 2, 2), (2, 4, 4), (4, 8, 8)]])
def test_items_are_slices_with_their_condition(tmp_path, grids):
    codes = [torch.randint(0, 9, (5, *grid), generator=torch.Generator().manual_seed(0)) for grid in grids]
    records = [{"position_mm": float(i)} for i in range(5)]
    save_codes(tmp_path, {"training": codes}, {"training": records}, codebook_sizes=[9] * len(grids), fingerprint="abc")
    store = CodeStore(tmp_path)
    encode = lambda rows: torch.tensor([[row["position_mm"]] for row in rows])  # noqa: E731
    dataset = CodesDataset(store, "training", encode_condition=encode)
    assert len(dataset) == 5
    item = dataset[4]
    assert set(item) == {"condition", *(f"codes_{level}" for level in range(len(grids)))}
    for level, codes_ns in enumerate(codes):
        assert item[f"codes_{level}"].dtype == torch.int64
        assert torch.equal(item[f"codes_{level}"], codes_ns[4])
    assert item["condition"].tolist() == [4.0]
    assert "condition" not in CodesDataset(store, "training")[0]


def test_an_empty_or_unknown_split_is_refused(tmp_path):
    empty = {"training": [torch.zeros(0, 2, 2, dtype=torch.int64)]}
    save_codes(tmp_path, empty, {"training": []}, codebook_sizes=[4], fingerprint="abc")
    with pytest.raises(InputError, match=r"'training' .*is empty"):
        CodesDataset(CodeStore(tmp_path), "training")
    with pytest.raises(InputError, match="'test'"):
        CodesDataset(CodeStore(tmp_path), "test")
