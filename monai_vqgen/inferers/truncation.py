"""Temperature, top-k and top-p: how a distribution is sharpened or cut before a code is drawn.

Legend of suffixes: b batch, k number of codes.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from monai_vqgen.errors import InputError

__all__ = ["Truncation"]


class Truncation:
    """Divides logits by the temperature, then keeps the `top_k` largest, then the nucleus `top_p` of what is left.

    The nucleus is the smallest set of most probable codes whose probability reaches `top_p` (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", 2020); at least one code always remains. Codes that fall out get -inf.
    Of equal logits at the edge, the smaller code stays.

    Args:
        temperature: above 0; below 1 sharpens.
        top_k: keep this many codes, at least 1; None keeps all.
        top_p: keep this much probability, above 0 and at most 1; None keeps all.

    Raises:
        InputError: an argument out of range.

    Examples:
        >>> import torch
        >>> Truncation(top_k=2).apply(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([[-inf, 3., 2.]])
    """

    def __init__(self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
        if not (_is_finite(temperature) and temperature > 0):
            raise InputError(
                f"temperature is {temperature}; give a number above 0. For the most probable code at every position "
                "(temperature 0) use top_k=1"
            )
        if top_k is not None and (top_k < 1 or top_k != int(top_k)):
            raise InputError(f"top_k is {top_k}; give a whole number of at least 1, or leave it out to keep all codes")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}; give a number above 0 and at most 1, or leave it out")
        self.temperature, self.top_p = temperature, top_p
        self.top_k = None if top_k is None else int(top_k)  # 3.0 is a whole number too, but no index

    def apply(self, logits_bk: Tensor) -> Tensor:
        """Truncated, tempered logits `(b, k)`; the input itself where nothing is to be done."""
        if self.temperature != 1:
            logits_bk = logits_bk / self.temperature
        top_k = logits_bk.shape[1] if self.top_k is None else self.top_k
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_k >= logits_bk.shape[1] and top_p >= 1:
            return logits_bk
        ordered_bk, order_bk = logits_bk.sort(dim=1, descending=True, stable=True)
        ordered_bk[:, top_k:] = -torch.inf
        if top_p < 1:
            probability_bk = ordered_bk.softmax(1)
            before_bk = probability_bk.cumsum(1) - probability_bk
            outside_bk = before_bk >= top_p
            outside_bk[:, 0] = False
            ordered_bk = ordered_bk.masked_fill(outside_bk, -torch.inf)
        return torch.empty_like(ordered_bk).scatter_(1, order_bk, ordered_bk)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(float(value))
