"""Sampling, scoring and completing hierarchies of codes with one prior a level.

Legend of suffixes: b batch, f condition features, k number of codes, n raster positions, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from monai_vqgen.errors import InputError
from monai_vqgen.inferers.draws import (
    GumbelNoise,
    Truncation,
    check_codes,
    check_grids,
    check_masks,
    check_priors,
    checked_condition,
    device_of,
    in_memory,
)
from monai_vqgen.networks.blocks import one_a_level
from monai_vqgen.networks.priors.base import IncrementalPass, PlainIncremental, Prior
from monai_vqgen.networks.quantizers.base import in_float64

Progress = Callable[[int, int], None]  # takes (positions done, positions in all), over all levels and samples


class AncestralSampler:
    """Draws codes level by level, coarsest first, and position by position in raster order.

        p(codes) = p(level 0) p(level 1 | level 0) ...      p(level) = product over i of p(code i | codes before i)

    Drives any prior that keeps the contract of `Prior`. A sample is a function of (weights, seed, sample index) and of
    the sampler's temperature and truncation alone: not of batch size, of caching, or of how samples are shared out
    among processes (`first_sample`), but for ties at float precision. Priors run without dropout, whatever their
    mode, and are left in the mode they were in.

    Args:
        priors: one a level, coarsest first.
        temperature: above 0, for all levels or one a level; below 1 gives more probable, less varied samples.
        top_k: keep this many codes at each position, for all levels or one a level; None keeps all.
        top_p: keep this much probability at each position, for all levels or one a level; None keeps all.
        cached: use each prior's incremental pass; otherwise its whole forward at every position (slow, the oracle).
        batch_size: samples drawn together.

    Raises:
        InputError: arguments out of range, priors that do not fit each other, grids or codes that do not fit them.

    Examples:
        >>> from monai_vqgen.networks import GatedPixelCNN
        >>> top = GatedPixelCNN(8, channels=8, num_layers=2, attention_every=0)
        >>> bottom = GatedPixelCNN(8, channels=8, num_layers=2, attention_every=0, coarser_codes=[8])
        >>> sampler = AncestralSampler([top, bottom])
        >>> [tuple(codes.shape) for codes in sampler.sample([(2, 2), (4, 4)], num_samples=3, seed=7)]
        [(3, 2, 2), (3, 4, 4)]
    """

    def __init__(
        self,
        priors: Sequence[Prior],
        *,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float | None] | None = None,
        cached: bool = True,
        batch_size: int = 16,
    ) -> None:
        check_priors(priors)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1")
        self.priors = list(priors)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        columns = {name: one_a_level(name, value, len(self.priors)) for name, value in settings.items()}
        rows = zip(*columns.values(), strict=True)
        self.truncations = [Truncation(temperature=t, top_k=k, top_p=p) for t, k, p in rows]
        self.cached, self.batch_size = cached, batch_size

    def sample(
        self,
        grids: Sequence[Sequence[int]],
        *,
        num_samples: int,
        seed: int = 0,
        first_sample: int = 0,
        condition: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, ...]:
        """Draw new codes.

        Args:
            grids: each level's grid, coarsest first.
            num_samples: how many, at least 1.
            seed: with the sample's index, decides the result.
            first_sample: index of the first sample; samples 4 to 7 are the same drawn alone or after 0 to 3.
            condition: float `(num_samples, f)`, or `(1, f)` for the same condition throughout; None where no prior
                needs one. Priors without a condition ignore it.
            progress: called with (positions done, positions in all).

        Returns:
            Integers `(num_samples, *grid)` a level, on the priors' device.
        """
        if num_samples < 1:
            raise InputError(f"num_samples is {num_samples}; give at least 1")
        check_grids(grids, self.priors)
        device = device_of(self.priors[0])
        codes = [torch.zeros(num_samples, *grid, dtype=torch.long, device=device) for grid in grids]
        masks = [torch.ones(num_samples, *grid, dtype=torch.bool) for grid in grids]
        self._fill(codes, masks, seed=seed, first_sample=first_sample, condition=condition, progress=progress)
        return tuple(codes)

    def complete(
        self,
        codes: Sequence[Tensor],
        masks: Sequence[Tensor],
        *,
        seed: int = 0,
        first_sample: int = 0,
        condition: Tensor | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, ...]:
        """Draw the codes at the positions of a mask, and keep the rest.

        Each is drawn given the coarser levels and all codes before it in raster order, known or drawn. Known codes
        *after* it do not influence it: a raster-order model has no cheap way to look ahead, so this is not the
        posterior given all known codes unless these all come first.

        Args:
            codes: integers `(b, *grid)` a level, coarsest first; those under the mask are not looked at.
            masks: booleans a level, `(b, *grid)` or `(*grid)`; True where a code is to be drawn.
            seed: with the sample's index, decides the result.
            first_sample: index of the first sample.
            condition: float `(b, f)` or `(1, f)`, or None.
            progress: called with (positions done, positions in all).

        Returns:
            New tensors of the shapes of `codes`.
        """
        check_masks(masks, codes)
        drawn = [mask.expand(codes_bs.shape).cpu() for codes_bs, mask in zip(codes, masks, strict=True)]
        device = device_of(self.priors[0])
        # A code under the mask is a placeholder and may be anything; 0 is always in range.
        filled = [
            c.to(device).long().masked_fill(m.to(device), 0).contiguous() for c, m in zip(codes, drawn, strict=True)
        ]
        check_codes(filled, self.priors)
        self._fill(filled, drawn, seed=seed, first_sample=first_sample, condition=condition, progress=progress)
        return tuple(filled)

    def log_prob(self, codes: Sequence[Tensor], condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """Log-probability of given codes under the priors as trained, without temperature and truncation.

        Args:
            codes: integers `(b, *grid)` a level, coarsest first.
            condition: float `(b, f)` or `(1, f)`, or None.

        Returns:
            float32 `(b,)` in nats a level; their sum is the log-probability of the whole hierarchy.
        """
        maps = self.log_prob_maps(codes, condition)
        return tuple(in_float64(map_bs.flatten(1)).sum(1).float().to(map_bs.device) for map_bs in maps)

    def log_prob_maps(self, codes: Sequence[Tensor], condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """Log-probability of each code given the coarser levels and all codes before it; `log_prob` is their sum.

        Args:
            codes: integers `(b, *grid)` a level, coarsest first.
            condition: float `(b, f)` or `(1, f)`, or None.

        Returns:
            float32 `(b, *grid)` in nats a level, on the priors' device.
        """
        device = device_of(self.priors[0])
        codes = [codes_bs.to(device).long() for codes_bs in codes]
        check_codes(codes, self.priors)
        count = codes[0].shape[0]
        condition_bf = checked_condition(condition, self.priors, count=count)
        maps = [torch.zeros(codes_bs.shape, dtype=torch.float32, device=device) for codes_bs in codes]

        def score(part: slice) -> None:
            for level, prior in enumerate(self.priors):
                given = _given(prior, condition_bf, part)
                logits_bks = prior(codes[level][part], [c[part] for c in codes[:level]], given)
                chosen_b1s = logits_bks.float().log_softmax(1).gather(1, codes[level][part][:, None])
                maps[level][part] = chosen_b1s[:, 0]

        with _evaluating(self.priors), torch.inference_mode():
            for part in self._batches(count):
                in_memory(score, part)
        return tuple(maps)

    def _batches(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))

    def _fill(
        self,
        codes: Sequence[Tensor],
        masks: Sequence[Tensor],
        *,
        seed: int,
        first_sample: int,
        condition: Tensor | None,
        progress: Progress | None,
    ) -> None:
        """Draw the masked positions of `codes` in place, batch by batch and level by level."""
        if first_sample < 0:
            raise InputError(f"first_sample is {first_sample}; give at least 0")
        count = codes[0].shape[0]
        condition_bf = checked_condition(condition, self.priors, count=count)
        noises = [GumbelNoise(seed, level=level, num_codes=prior.num_codes) for level, prior in enumerate(self.priors)]
        total = sum(mask.numel() for mask in masks)

        def fill(part: slice) -> None:
            samples = range(first_sample + part.start, first_sample + part.stop)
            done = part.start * total // count
            for level, prior in enumerate(self.priors):
                given = _given(prior, condition_bf, part)
                level_codes = codes[level][part]
                start_pass = prior.incremental if self.cached else partial(PlainIncremental, prior)
                grid, coarser = level_codes.shape[1:], [c[part] for c in codes[:level]]
                steps = start_pass(grid, batch_size=len(samples), coarser=coarser, condition=given)
                level_mask = masks[level][part].flatten(1)
                for positions in self._draw(
                    level, steps, level_codes, mask_bn=level_mask, noise=noises[level], samples=samples
                ):
                    done += positions * len(samples)
                    if progress is not None:
                        progress(done, total)

        with _evaluating(self.priors), torch.inference_mode():
            for part in self._batches(count):
                in_memory(fill, part)

    def _draw(
        self,
        level: int,
        steps: IncrementalPass,
        codes_bs: Tensor,
        *,
        mask_bn: Tensor,
        noise: GumbelNoise,
        samples: Sequence[int],
    ) -> Iterator[int]:
        """Fill one level of one batch in place; yields after each row with its number of positions."""
        row, codes_bn = codes_bs.shape[-1], codes_bs.view(codes_bs.shape[0], -1)
        truncation = self.truncations[level]
        wanted_n, whole_n = mask_bn.any(0).tolist(), mask_bn.all(0).tolist()
        last = max((i for i, wanted in enumerate(wanted_n) if wanted), default=-1)
        mask_bn, columns = mask_bn.to(codes_bs.device), codes_bn.unbind(1)
        for first in range(0, codes_bn.shape[1], row):
            if first <= last:
                needed = any(wanted_n[first : first + row])
                # One row of the grid at a time: the noise never needs more memory than a row's logits.
                rows = noise.rows(samples, first=first, count=row).to(codes_bs.device).unbind(1) if needed else ()
                for i in range(first, min(first + row, last + 1)):
                    if wanted_n[i]:
                        noisy_bk = truncation.apply(steps.logits()).add(rows[i - first])
                        if whole_n[i]:
                            torch.argmax(noisy_bk, 1, out=columns[i])
                        else:
                            columns[i].copy_(torch.where(mask_bn[:, i], noisy_bk.argmax(1), columns[i]))
                    steps.push(columns[i])
            yield row


def _given(prior: Prior, condition_bf: Tensor | None, part: slice) -> Tensor | None:
    return condition_bf[part] if condition_bf is not None and prior.condition_dim else None


@contextmanager
def _evaluating(priors: Sequence[Prior]) -> Iterator[None]:
    """Switch the priors to eval mode, and each of their modules back to its own mode afterwards."""
    modes = [(module, module.training) for prior in priors for module in prior.modules()]
    try:
        for prior in priors:
            prior.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
