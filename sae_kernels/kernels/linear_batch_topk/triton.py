"""`linear_batch_topk` in Triton: the vendor's GEMM by chunks, and a bound that rises while they come.

Scores not below the bound are counted by the upper 16 bits of their key and appended to their row's list; the bound is
then the largest bin edge that `count` scores reach, so nothing below it can be among the best. At the end the bin of
the count-th is told apart by the lower 16 bits, and its equals by their place: row by row, each takes what is left of
the ties. Nothing is sorted; counts are integers; the result is exact and the same from run to run.

One device-to-host read, behind everything else: how many rows' lists were too short. A list has room for about M/128
(16 bits) or three times the average; a row is short if it holds far more of the best than others, or if masses of
scores fall into one bin. Those rows are scored again, alone, four times over, if they are a quarter of the batch or
fewer (and one more number is read then); otherwise everything is, three times: slow, and as exact.
Memory beside the result: at most 10 % of the (N, M) tensor at sizes worth the name, `first_pass_bytes`.

*Precision*: as in `linear_topk`.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from .._pre_acts import check
from .._triton import ragged_kernels, same_dtype
from .._triton.inputs import cdiv, flat, launches
from .._triton.order import SENTINEL
from .._triton.ragged import (
    ALONE,
    ENTRY,
    Again,
    Lists,
    Rule,
    Source,
    alone,
    config,
    counted,
    everything,
    fill,
    offsets_of,
    plan,
    read,
    widths,
)
from .._triton.scores import Scores


def why_not(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(x, W, b)


def first_pass_bytes(n: int, m: int, itemsize: int, count: int) -> int:
    """Memory of scores, lists and tally."""
    tiles = plan(n, m, itemsize, cdiv(count, n)).tiles
    return 4 * tiles["ROWS"] * tiles["COLS"] + n * (ENTRY * tiles["ROOM"] + 4) + 8 * ragged_kernels.BINS


@launches
def run(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_batch_topk`."""
    check(x, W, b)
    n, m = x.shape[0], W.shape[0]
    if not 0 <= count <= n * m:
        raise ShapeError(f"count = {count}, expected 0 <= count <= N·M = {n * m}")
    out = x.new_empty(count), torch.empty(count, dtype=torch.int32, device=x.device)
    if count == 0:
        return *out, offsets_of(x.new_zeros(n).long())
    bias = None if b is None else flat(b, "b", x.dtype)
    return *out, _Selection(x, W, bias, count, relu, out).offsets()


class _Selection:
    """A call. `all`, `bound`: (wanted, key) on the device, as in `ragged_kernels`."""

    def __init__(
        self, x: Tensor, W: Tensor, bias: Tensor | None, count: int, relu: bool, out: tuple[Tensor, Tensor]
    ) -> None:
        self.x, self.W, self.bias, self.relu, self.out, self.n = x, W, bias, relu, out, x.shape[0]
        self.tiles = plan(self.n, W.shape[0], x.itemsize, cdiv(count, self.n)).tiles
        self.all = torch.full((2,), count, dtype=torch.int64, device=x.device)
        self.all[1:].fill_(SENTINEL.value)  # no bound yet: all of `count` are wanted
        self.bound = self.all.clone()

    def offsets(self) -> Tensor:
        """Fill the outputs; the offsets of the rows."""
        lists = self._listed()
        offsets = self._filled(lists.source(), None, self.bound)
        short = lists.short()
        (shorts,) = read(short.sum())
        if shorts == 0:
            return offsets
        if ALONE * shorts <= self.n:
            again, source = alone(self.x, self.W, self.bias, short, shorts), lists.source(short)
            bound = self._tallied(source, again, self.bound, self.all, False)
            # scored alone, rows may fall below the first pass's bound by their last bits: then there are too few
            if not read(bound[1] == SENTINEL.value)[0]:
                return self._filled(source, again, bound)
            del source
        del lists
        return self._filled(None, everything(self.x, self._chunks, self.bias), self.bound)

    def _chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, first latent, scores): all tokens of some latents, then the next latents."""
        scores = Scores(self.x, self.W, self.tiles["ROWS"], self.tiles["COLS"])
        for first, width in widths(scores.m, scores.cols, self.tiles["ROOM"]):
            for row, rows in scores.tokens():
                yield row, first, scores.chunk(row, rows, first, width)

    def _listed(self) -> Lists:
        """The first pass: lists, and the bound."""
        room, choice = self.tiles["ROOM"], config("append", self.tiles["COLS"])
        lists = Lists(self.n, 1, room, self.x.device)
        tally = torch.zeros(ragged_kernels.BINS, dtype=torch.int64, device=self.x.device)
        meta: dict[str, Any] = {"BIAS": self.bias is not None, **choice.meta}
        seen = raised = 0
        for row, first, scores in self._chunks():
            rows, cols = scores.shape
            ragged_kernels.keep_best[cdiv(rows, choice.tiles["ROWS"]),](
                scores, self.bias, self.bound, tally, *lists.of(row, rows), rows, first, cols, room, **meta
            )
            seen = first + cols
            if row + rows == self.n and (2 * seen >= 3 * raised or seen == self.W.shape[0]):
                raised = seen
                ragged_kernels.raise_bound[1,](tally, self.all, self.bound, FINE=False, **config("raise").meta)
        return lists

    def _tallied(self, source: Source | None, again: Again | None, bound: Tensor, wanted: Tensor, fine: bool) -> Tensor:
        """Tally what the bound lets through, and raise the bound of `wanted`."""
        tally = torch.zeros(ragged_kernels.BINS, dtype=torch.int64, device=bound.device)
        if source is not None:
            _count(source, bound, tally, fine)
        if again is not None:
            for _, each in again.sources():
                _count(each, bound, tally, fine)
        raised = torch.empty_like(bound)
        ragged_kernels.raise_bound[1,](tally, wanted, raised, FINE=fine, **config("raise").meta)
        return raised

    def _filled(self, source: Source | None, again: Again | None, bound: Tensor) -> Tensor:
        """Choose exactly among what reaches the bound, and fill the outputs."""
        last = self._tallied(source, again, bound, bound, True)
        rule = Rule(None, last, self.relu)
        kept, ties = counted(source, again, rule, self.n)
        taken = (last[0] - (ties.cumsum(0) - ties)).clamp_min(0).minimum(ties)
        offsets = offsets_of(kept + taken)
        if again is not None:  # should a GEMM ever round otherwise when repeated: nothing outside, nothing arbitrary
            offsets.clamp_max_(self.out[0].shape[0])
            for out in self.out:
                out.zero_()
        fill(source, again, rule, offsets, taken.int(), self.out)
        return offsets


def _count(source: Source, bound: Tensor, tally: Tensor, fine: bool) -> None:
    ragged_kernels.count_keys[source.grid](
        source.numbers, source.latents, source.lengths, source.bias, bound, tally, source.rows, source.first,
        source.numbers.shape[1], FINE=fine, **source.meta,
    )  # fmt: skip
