"""Sampling a gated PixelCNN one position at a time, computing every feature once.

Legend of suffixes: b batch, c channels, k number of codes, s spatial axes, n raster positions, w positions of a row.

    once a call       context network, coordinates, rearranged weights, all buffers and their views
    once a plane/row  the other stacks as large matrix products (`slabs`); their links, with bias and context, become
                      the buffer in which the horizontal stack's gates add up; the attentions' views
    once a position   a layer: window of the row buffer @ weight, tanh, gate, 1x1 + residual into the next layer's row
                      an attention: layer norm, one product, one query against the keys and values up to the row's end
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_vqgen.networks.priors.base import IncrementalPass
from monai_vqgen.networks.priors.gated.slabs import ContextRows, SlabStack
from monai_vqgen.networks.priors.gated.weights import AttentionWeights, GatedWeights, at


def _inference() -> AbstractContextManager[Any]:
    """Inference mode, which costs microseconds to enter: a sampler enters it once for all positions."""
    return nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()


class _Step(NamedTuple):
    """Views of one layer's buffers at one column of the row."""

    window: Tensor
    pre: Tensor
    value: Tensor
    gate: Tensor
    here: Tensor
    after: Tensor


class _KeyValueCache:
    """One self-attention over the positions so far.

    Every view and buffer of a row is made when the row begins, because making them at each position takes as long as
    the products. The products then run to the end of the row; a channel of the keys keeps out what lies ahead in it
    (see `AttentionWeights`).
    """

    def __init__(self, weights: AttentionWeights, *, row: int, batch_size: int) -> None:
        self._weights, self._position = weights, weights.position_n.unbind()
        n, b, heads, like = len(self._position), batch_size, weights.num_heads, weights.qkv
        size = like.shape[1] // (3 * heads)
        self._row, self._channels = row, (like.shape[0],)
        # Positions come last: products with one query or one row of weights then run along them, without strides.
        # Zeros, because a value without a share still takes part in a product, and must be finite.
        self._cache = like.new_zeros(2, b * heads, size, n)
        self._cache[0, :, -1] = torch.finfo(like.dtype).min
        self._new = self._cache.view(2, b, heads, size, n).transpose(0, 1)
        self._qkv = like.new_empty(b, 3 * heads * size)
        parts = self._qkv.view(b, 3, heads, size)
        self._query, self._key_and_value = parts[:, 0], parts[:, 1:]
        self._queries = self._query.reshape(b * heads, 1, size)  # a view for one grid, else a copy to be renewed
        self._copied_queries = self._queries.view(b, heads, size) if b > 1 else None
        self._attended = like.new_empty(b * heads, 1, size)
        self._attended_bc = self._attended.view(b, heads * size)

    def begin_row(self, first: int) -> None:
        """Make ready for the row whose first raster position is given."""
        keys_and_values = self._cache.narrow(-1, 0, first + self._row)
        self._keys_t, self._values = keys_and_values[0], keys_and_values[1].transpose(1, 2)
        self._columns = self._new.narrow(-1, first, self._row).unbind(-1)
        self._scores = self._cache.new_empty(self._cache.shape[1], 1, first + self._row)
        self._shares = torch.empty_like(self._scores)

    def add_to(self, features_bc: Tensor, *, position: int) -> None:
        """Add the attention's output at `position` to its features, in place."""
        normal_bc = torch.layer_norm(features_bc, self._channels)
        torch.addmm(self._position[position], normal_bc, self._weights.qkv, out=self._qkv)
        self._columns[position % self._row].copy_(self._key_and_value)
        if self._copied_queries is not None:
            self._copied_queries.copy_(self._query)
        torch.bmm(self._queries, self._keys_t, out=self._scores)
        torch.softmax(self._scores, -1, out=self._shares)
        torch.bmm(self._shares, self._values, out=self._attended)
        features_bc.addmm_(self._attended_bc, self._weights.output)


class GatedIncremental(IncrementalPass):
    """The incremental pass of a `GatedPixelCNN`; logits equal the full forward's to float precision.

    The weights are those for this grid, the context map is channels last.
    """

    @torch.inference_mode()
    def __init__(
        self, weights: GatedWeights, grid: Sequence[int], *, batch_size: int, context_bsc: Tensor | None
    ) -> None:
        self._grid, self._row, self._b, self._c = tuple(grid), grid[-1], batch_size, weights.channels
        self._slabs = [
            SlabStack(weights, axis, grid=grid, batch_size=batch_size, context_bsc=context_bsc)
            for axis in range(len(grid) - 1)
        ]
        self._prepare_codes(weights)
        self._prepare_rows(weights, context_bsc=context_bsc)
        self._caches = {
            index: _KeyValueCache(attention, row=self._row, batch_size=batch_size)
            for index, attention in weights.attentions.items()
        }
        self._blocks = weights.output_blocks
        self._hidden, self._hidden_bias, self._output, self._output_bias = weights.head
        self._positive_bc, self._inner_bc = (self._gated_bc.new_empty(batch_size, weights.channels) for _ in range(2))
        self._rows = list(product(*(range(n) for n in grid[:-1])))
        self._position, self._features_ready = 0, False

    def _prepare_codes(self, weights: GatedWeights) -> None:
        """The codes so far, behind a margin of "outside" codes, which are K."""
        self._margin = weights.inputs[0].taps
        lead = [n + self._margin for n in self._grid[:-1]]
        table = weights.embedding_kc
        self._codes = torch.full((self._b, *lead, self._row), weights.num_codes, device=table.device)
        # What a code adds to the horizontal stack's input 1, 2, ... positions later, straight from a table.
        kernel = weights.inputs[-1].kernel.flatten(2)
        self._code_terms = torch.einsum("kc,oct->kto", table, kernel.flip(-1)).contiguous()
        self._terms = self._code_terms.new_empty(self._b, *self._code_terms.shape[1:])

    def _prepare_rows(self, weights: GatedWeights, *, context_bsc: Tensor | None) -> None:
        """Row buffers of the horizontal stack, and the views of them that each column needs."""
        layers, start = weights.stacks[-1], weights.inputs[-1]
        self._products = [(layer.taps[0], layer.residual) for layer in layers]
        self._biases = [layer.bias for layer in layers]
        self._context = None
        if context_bsc is not None:
            contexts = [layer.context for layer in layers if layer.context is not None]
            self._context = ContextRows(context_bsc, contexts, grid=self._grid, lead=len(self._grid) - 1)
        self._start_sc = start.position_sc + start.bias
        b, c, w, reach = self._b, self._c, self._row, weights.kernel_size // 2
        spare = self._code_terms.shape[1]  # columns past the row's end, written and never read
        rows = [self._start_sc.new_zeros(b, reach + w + spare, c) for _ in range(len(layers) + 1)]
        self._inputs_bwc = rows[0][:, reach : reach + w]
        self._later = [rows[0][:, reach + x + 1 : reach + x + 1 + spare] for x in range(w)]
        self._outputs = [rows[-1][:, reach + x] for x in range(w)]
        self._gated_bc = self._start_sc.new_empty(b, c)
        columns = []
        for layer, gate in enumerate(self._slabs[-1].links):
            here, after = (row[:, reach : reach + w].unbind(1) for row in rows[layer : layer + 2])
            windows = rows[layer].flatten(1).unfold(1, (reach + 1) * c, c).unbind(1)
            views = (windows, gate.unbind(1), gate[..., :c].unbind(1), gate[..., c:].unbind(1), here, after)
            columns.append([_Step(*step) for step in zip(*(view[:w] for view in views), strict=True)])
        self._steps = list(zip(*columns, strict=True))

    def logits(self) -> Tensor:
        """Logits `(b, k)` of the next position."""
        with _inference():
            self._run_position()
            x_bc = self._outputs[self._position % self._row]
            for hidden, hidden_bias, output, output_bias in self._blocks:
                inner_bc = torch.addmm(hidden_bias, x_bc.relu(), hidden).relu_()
                x_bc = torch.addmm(output_bias, inner_bc, output).add_(x_bc)
            torch.clamp_min(x_bc, 0, out=self._positive_bc)
            torch.addmm(self._hidden_bias, self._positive_bc, self._hidden, out=self._inner_bc).relu_()
            return torch.addmm(self._output_bias, self._inner_bc, self._output)

    def push(self, codes_b: Tensor) -> None:
        """Fix the codes at this position and move on."""
        with _inference():
            self._run_position()
            x = self._position % self._row
            self._columns_b[x].copy_(codes_b)
            torch.index_select(self._code_terms, 0, codes_b, out=self._terms)
            self._later[x].add_(self._terms)
            self._position += 1
            self._features_ready = False

    def _run_position(self) -> None:
        """Compute all layers' horizontal features at the current position, unless that is done."""
        if self._features_ready:
            return
        x = self._position % self._row
        if x == 0:
            self._begin_row(self._rows[self._position // self._row])
        gated_bc, caches = self._gated_bc, self._caches
        for layer, (step, (taps, residual)) in enumerate(zip(self._steps[x], self._products, strict=True)):
            window, pre, value, gate, here, after = step
            pre.addmm_(window, taps).tanh_()
            torch.addcmul(value, value, gate, out=gated_bc)
            torch.addmm(here, gated_bc, residual, out=after)
            if layer in caches:
                caches[layer].add_to(after, position=self._position)
        self._features_ready = True

    def _begin_row(self, index: tuple[int, ...]) -> None:
        """Advance the other stacks to the row at `index`, and start the horizontal stack's row."""
        self._columns_b = at(self._codes, slice(None), *(i + self._margin for i in index)).unbind(1)
        for axis, slab in enumerate(self._slabs):
            if any(index[axis + 1 :]):
                continue  # this stack's slab began with an earlier row
            if axis and index[axis] == 0:
                slab.reset()
            here = [slice(i + self._margin, i + self._margin + 1) for i in index[:axis]]
            before = slice(index[axis], index[axis] + self._margin)
            inner = [slice(self._margin, None)] * (len(index) - axis - 1)
            codes = at(self._codes, slice(None), *here, before, *inner)
            above = None if axis == 0 else [link[:, index[axis]] for link in self._slabs[axis - 1].links]
            following = self._biases if slab is self._slabs[-1] else self._slabs[axis + 1].biases
            slab.advance(codes, index[: axis + 1], links=above, biases=following)
        if self._context is not None:
            for link, term in zip(self._slabs[-1].links, self._context.gates(index), strict=True):
                link.add_(term)
        self._inputs_bwc.copy_(self._start_sc[index])
        for cache in self._caches.values():
            cache.begin_row(self._position)
