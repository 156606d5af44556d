"""One split of a code store as training items.

Shape suffixes: n slices, s spatial axes (2 or 3), f condition features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from monai_vqgen.data.codes.store import CodeStore
from monai_vqgen.errors import InputError

__all__ = ["CodesDataset"]


class CodesDataset(Dataset[dict[str, Tensor]]):
    """One split of a code store as training items.

    Items are ``{"codes_0": int64 (*s), "codes_1": ..., "condition": float32 (f,)}``; ``condition`` only where an
    encoder is given.

    Args:
        store: the code store.
        split: name of the split.
        encode_condition: makes (n, f) features from the slices' records, as `ConditionEncoder.encode` does, or None.

    Raises:
        InputError: the split is not in the store, or is empty.
    """

    def __init__(
        self,
        store: CodeStore,
        split: str,
        *,
        encode_condition: Callable[[Sequence[Mapping[str, Any]]], Tensor] | None = None,
    ) -> None:
        records = store.records(split)
        if not records:
            raise InputError(f"Split {split!r} of {store.folder} is empty")
        self.store, self.split, self.num_items = store, split, len(records)
        self.condition_nf = encode_condition(records) if encode_condition is not None else None

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {f"codes_{level}": codes_s for level, codes_s in enumerate(self.store.read(self.split, index))}
        if self.condition_nf is not None:
            item["condition"] = self.condition_nf[index]
        return item
