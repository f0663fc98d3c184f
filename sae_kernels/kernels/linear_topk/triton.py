"""`linear_topk` in Triton: a chunk of x Wᵀ in float32, folded at once into each row's list of candidates.

A row keeps the k best scores so far, what was appended to them, and the k-th best as a bound: of a chunk, only what
beats the bound is appended. When the list is full it is merged with the chunk in hand, down to the k best again; the
bound rises. Latents come in ascending order, so lists stay in order and ties go to the smaller index by themselves. No
order of scores is slow: a merge costs about the same whatever it finds, and there is at most one a chunk.

*Precision*: the selection is made on sums accumulated in float32, bias included, before anything is rounded; values are
rounded once, to the dtype of x. For float32 inputs the products follow torch's float32 matmul precision.

Memory: the scratch of `_triton/scores.py`, and about 4k scores and latents a row and selection for at most 8192 rows.
Few tokens, or a very large k, are taken by chunks of tokens with the scores of all latents instead.
"""

# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportArgumentType=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._pre_acts import check
from .._triton import interpreting, same_dtype
from .._triton.cast import narrow, wide
from .._triton.inputs import cdiv, flat, launches, next_power_of_2
from .._triton.order import SENTINEL, chosen_slots, count, key_of, kth_key_of_two, score_of, slots_above
from .._triton.scores import ROWS, Scores, budget, even
from .._triton.select import best_of_rows, fill
from .._triton.tuning import Config, pick

LARGEST_K = 2048  # whose list is a tile
STATE_BYTES = 8 << 20  # of lists, at least; otherwise 4 % of the (N, M) tensor


@triton.jit
def _listed(state, k, room, first, ENTRIES: tl.constexpr):
    """(place, there) of entries of each row's list from `first` on, in the order of their latents.

    A row has room for k + room + k entries: the k best live at its start (half 1) or at its end (half 2), the appended
    ones in between. A merge writes to the half it does not read: no program reads what it has written.
    """
    entry = first + tl.arange(0, ENTRIES)[None, :]
    tail, half = (state >> 2)[:, None], (state & 3)[:, None]
    best = entry < k
    place = tl.where(best & (half == 2), k + room + entry, entry)
    return place, (best & (half > 0)) | ((entry >= k) & (entry < k + tail))


@triton.jit
def _chunk(
    rows, bias, among, inside, column, cols, FULL: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr
):  # fmt: skip
    """(score, there) of columns of a chunk. FULL: a program has one row, and the chunk no end: nothing is masked."""
    there = inside[:, None] & (column < cols)
    if FULL:
        there = column >= 0
    score = tl.load(rows[:, None] + column, mask=there, other=0.0)
    if BIAS:
        score += wide(tl.load(bias + column, mask=(column < cols) | FULL, other=0.0))
    if AMONG:
        there = there & (tl.load(among + column, mask=(column < cols) | FULL, other=0) != 0)
    return score, there


@triton.jit
def _number(hit):
    """How many of each row, counted in float32, exactly: an integer sum of flags is compiled to twice the work."""
    return tl.sum(tl.where(hit, 1.0, 0.0), 1).to(tl.int32)


@triton.jit
def _put(kept, latents, slot, score, latent, chosen):
    """The chosen ones, to their slots of a list."""
    tl.store(kept + slot, score, mask=chosen)
    tl.store(latents + slot, latent, mask=chosen)


@triton.jit(do_not_specialize=["n"])
def _fold(
    scores, bias, among, kept, latents, states, bounds, n: tl.int64, first, cols, k, room,
    ROWS: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr, PART: tl.constexpr, FULL: tl.constexpr,
    BIAS: tl.constexpr, AMONG: tl.constexpr,
):  # fmt: skip
    """Take in the scores of latents `first` … `first + cols - 1`.

    State of a row: 4 · appended + half. Its bound is NaN, which nothing is ≤ to, until k were seen. What is written is
    written part by part, from scores read again: few registers, so that many programs wait for memory at once.
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    rows = scores + row * cols
    if BIAS:
        bias += first
    if AMONG:
        among += first
    score, there = _chunk(rows, bias, among, row < n, tl.arange(0, TILE)[None, :], cols, FULL, BIAS, AMONG)
    begun = (row < n) & (row * 0 + first > 0)
    bound = tl.load(bounds + row, mask=begun, other=float("nan"))
    hits = _number(there & ((score <= bound[:, None]) == 0))
    if tl.max(hits) > 0 or first == 0:
        state = tl.load(states + row, mask=begun, other=0)
        tail, half = state >> 2, state & 3
        fits = tail + hits <= room
        kept += start * (2 * k + room)
        latents += start * (2 * k + room)
        local = tl.arange(0, ROWS) * (2 * k + room)
        after, raised = state + 4 * hits, bound
        if tl.min(fits.to(tl.int32)) == 0:  # at least one row is merged: where a row fits, all keys are SENTINEL
            place, listed = _listed(state, k, room, 0, LIST)
            listed = listed & (fits == 0)[:, None]
            old = tl.load(kept + local[:, None] + place, mask=listed, other=0.0)
            old_key = tl.where(listed, key_of(old), SENTINEL)
            column = tl.arange(0, TILE)[None, :]
            new, there = _chunk(rows, bias, among, (row < n) & (fits == 0), column, cols, FULL, BIAS, AMONG)
            new_key = tl.where(there, key_of(new), SENTINEL)
            kth = kth_key_of_two(old_key, new_key, k, 0)
            ties = k - count(old_key > kth[:, None]) - count(new_key > kth[:, None])
            half = tl.where(half == 1, 2, 1)
            slots = local + tl.where(half == 2, k + room, 0)
            for part in range(0, LIST, PART):
                at, mine = _listed(state, k, room, part, PART)
                mine = mine & (fits == 0)[:, None]
                value = tl.load(kept + local[:, None] + at, mask=mine, other=0.0)
                latent = tl.load(latents + local[:, None] + at, mask=mine, other=0)
                chosen, slot, above, equal = slots_above(tl.where(mine, key_of(value), SENTINEL), kth, ties)
                _put(kept, latents, slots[:, None] + slot, value, latent, chosen)
                taken = tl.minimum(equal, ties)
                ties -= taken
                slots += above + taken
            for part in range(0, TILE, PART):
                here = part + tl.arange(0, PART)[None, :]
                value, mine = _chunk(rows, bias, among, (row < n) & (fits == 0), here, cols, FULL, BIAS, AMONG)
                chosen, slot, above, equal = slots_above(tl.where(mine, key_of(value), SENTINEL), kth, ties)
                _put(kept, latents, slots[:, None] + slot, value, first + here + slot * 0, chosen)
                taken = tl.minimum(equal, ties)
                ties -= taken
                slots += above + taken
            after = tl.where(fits, after, half)
            raised = tl.where(fits, bound, score_of(kth))
        if tl.max((fits & (hits > 0)).to(tl.int32)) > 0:  # at least one row is appended to
            slots = local + k + tail - 1
            for part in range(0, TILE, PART):
                here = part + tl.arange(0, PART)[None, :]
                value, mine = _chunk(rows, bias, among, (row < n) & fits, here, cols, FULL, BIAS, AMONG)
                mine = mine & ((value <= bound[:, None]) == 0)
                found = _number(mine)
                if tl.max(found) > 0:
                    slot = slots[:, None] + tl.cumsum(mine.to(tl.int32), 1)
                    _put(kept, latents, slot, value, first + here + slot * 0, mine)
                    slots += found
        tl.store(states + row, after, mask=row < n)
        tl.store(bounds + row, raised, mask=row < n)


@triton.jit(do_not_specialize=["n"])
def _finish(
    kept, latents, states, values, indices, n: tl.int64, k, room,
    ROWS: tl.constexpr, LIST: tl.constexpr, TILE_K: tl.constexpr, RELU: tl.constexpr, AMONG: tl.constexpr,
):  # fmt: skip
    """The k best of each list, in the order of latents."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    place, there = _listed(tl.load(states + row, mask=row < n, other=0), k, room, 0, LIST)
    place += (tl.arange(0, ROWS) * (2 * k + room))[:, None]
    base = start * (2 * k + room)
    score = tl.load(kept + base + place, mask=there, other=0.0)
    latent = tl.load(latents + base + place, mask=there, other=0)
    chosen, slot, found = chosen_slots(tl.where(there, key_of(score), SENTINEL), k, 0)
    slot += (tl.arange(0, ROWS) * k)[:, None]
    if RELU:
        score = tl.where(score <= 0.0, 0.0, score)  # NaN stays
    tl.store(values + start * k + slot, narrow(score, values.dtype.element_ty), mask=chosen)
    tl.store(indices + start * k + slot, latent, mask=chosen)
    if AMONG:  # noqa: SIM102  (decided at compile time)
        if tl.min(found) < k:
            fill(values, indices, row, found, row < n, k, True, TILE_K)


class _Selection:
    """One selection: its outputs."""

    def __init__(self, x: Tensor, k: int, relu: bool, among: Tensor) -> None:
        self.k, self.relu = k, relu
        self.among = None if among.numel() == 0 else flat(among, "among", torch.bool).view(torch.uint8)
        self.values = torch.empty(x.shape[0], k, dtype=x.dtype, device=x.device)
        self.indices = torch.empty(self.values.shape, dtype=torch.int32, device=x.device)


def room(k: int) -> int:
    """Appended entries a list has room for; at least k, so that a full list holds more than k."""
    return max(64, 2 * k) if k <= 1024 else k


def capacity(k: int) -> int:
    """Entries of a list."""
    return 2 * k + room(k)


class _Lists:
    """The candidates of one selection, for one chunk of tokens."""

    def __init__(self, selection: _Selection, rows: int, cols: int) -> None:
        self.selection, self.k, device = selection, selection.k, selection.values.device
        kept = torch.empty(rows, capacity(self.k), dtype=torch.float32, device=device)
        states = torch.empty(rows, dtype=torch.int32, device=device)
        self._state = (kept, torch.empty_like(kept, dtype=torch.int32), states)
        self._bounds = torch.empty(rows, dtype=torch.float32, device=device)
        self._list = next_power_of_2(self.k + room(self.k))
        self._tile = next_power_of_2(cols)
        masked = selection.among is not None
        size_class = f"{self._tile} scores, list {self._list}{', masked' if masked else ''}"
        self._config = pick("linear_topk.fold", size_class, fold_configs(self._tile, self._list, masked))
        self._last = pick("linear_topk.finish", f"list {self._list}", finish_configs(self._list))

    def fold(self, scores: Tensor, bias: Tensor | None, first: int) -> None:
        """Take in a chunk of scores."""
        (n, cols), config, among = scores.shape, self._config, self.selection.among
        full = cols == self._tile and config.tiles["ROWS"] == 1
        meta = {**config.meta, "PART": min(config.tiles["PART"], self._tile)}  # no part reaches beyond a full chunk
        _fold[cdiv(n, config.tiles["ROWS"]),](
            scores, bias, among, *self._state, self._bounds, n, first, cols, self.k, room(self.k), TILE=self._tile,
            LIST=self._list, FULL=full, BIAS=bias is not None, AMONG=among is not None, **meta,
        )  # fmt: skip

    def finish(self, row: int, rows: int) -> None:
        """Write the chunk's rows to the outputs."""
        mine, config = self.selection, self._last
        _finish[cdiv(rows, config.tiles["ROWS"]),](
            *self._state, mine.values[row:], mine.indices[row:], rows, self.k, room(self.k), LIST=self._list,
            TILE_K=min(1024, next_power_of_2(self.k)), RELU=mine.relu, AMONG=mine.among is not None, **config.meta,
        )  # fmt: skip


def fold_configs(tile: int, entries: int, masked: bool) -> list[Config]:
    """One warp a row, which then needs no barrier, as long as its registers hold the chunk and the list."""
    if interpreting():  # where programs are dear, and tiles cheap
        return [Config({"ROWS": 8, "PART": tile})]
    warps = min(16, max(1, next_power_of_2(tile + 2 * entries) // 2048))
    part = 256 if masked or warps > 1 else 128  # elements a warp writes at a time: what spills nowhere
    return [
        Config({"ROWS": 1, "PART": min(tile, each * part)}, each, 1)
        for each, part in ((warps, part), (warps, 384 - part), (2 * warps, 128))
    ]


def finish_configs(entries: int) -> list[Config]:
    """16 entries a thread."""
    if interpreting():
        return [Config({"ROWS": 8})]
    rows, warps = max(1, 256 // entries), min(16, max(1, entries // 512))
    return [Config({"ROWS": rows}, warps), Config({"ROWS": 1}, 2 * warps)]


def plans(n: int, m: int, itemsize: int, ks: Sequence[int]) -> list[Config]:
    """The chunk of scores: tokens and latents; COLS 0: all latents.

    Few tokens take all latents at once, and large k too. Otherwise tokens are bounded by the memory of their lists; a
    chunk of many tokens is 1024 latents wide, for a warp a row, one of few tokens, or of long lists, 4096, for fewer
    launches. Where that is more than the scratch, tokens give way: kernels are compiled for a width, so beyond 512
    tokens N must not choose it.
    """
    scratch = budget(n, m, itemsize) // 4
    if n * m <= scratch or max(ks) > LARGEST_K:
        return [Config({"ROWS": even(n, max(16, scratch // m), 16), "COLS": 0})]
    row = 8 * sum(capacity(k) + 1 for k in ks)
    most = min(ROWS, max(128, STATE_BYTES // row, n * m * itemsize // 25 // row))
    choices = []
    for width in (4096, 1024, 2048) if min(n, STATE_BYTES // row) <= 512 else (1024, 512, 2048):
        cols = min(m, width)
        rows = even(n, min(most, scratch // cols // 128 * 128), 128)
        config = Config({"ROWS": rows, "COLS": even(m, cols, 128)})
        if config not in choices:
            choices.append(config)
    return choices


def why_not(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor]
) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(x, W, b)


@launches
def run(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor]
) -> list[Tensor]:
    """See `sae_kernels.kernels.linear_topk`. Indices ascend within a row."""
    for k, mask in zip(ks, among, strict=True):
        check(x, W, b, k, among=None if mask.numel() == 0 else mask)
    selections = [_Selection(x, k, relu, mask) for k, relu, mask in zip(ks, relus, among, strict=True)]
    active = [selection for selection in selections if selection.k > 0]
    if active and x.shape[0] > 0:
        _select(x, W, None if b is None else flat(b, "b", x.dtype).float(), active)
    return [tensor for selection in selections for tensor in (selection.values, selection.indices)]


def _select(x: Tensor, W: Tensor, bias: Tensor | None, active: list[_Selection]) -> None:
    """Fill the outputs of the selections."""
    n, m, ks = x.shape[0], W.shape[0], [selection.k for selection in active]
    size_class = f"{x.itemsize} bytes, d<={next_power_of_2(x.shape[1])}, d_sae<={next_power_of_2(m)}"
    plan = pick("linear_topk", size_class, plans(n, m, x.itemsize, ks)).tiles
    chunks = Scores(x, W, plan["ROWS"], plan["COLS"] or m)
    if plan["COLS"] == 0:
        for row, rows in chunks.tokens():
            for _, scores in chunks.latents(row, rows):
                for each in active:
                    part = slice(row, row + rows)
                    best_of_rows(scores, each.k, each.values[part], each.indices[part], bias, each.among, each.relu)
        return
    lists = [_Lists(selection, chunks.rows, chunks.cols) for selection in active]
    for row, rows in chunks.tokens():
        for first, scores in chunks.latents(row, rows):
            for each in lists:
                each.fold(scores, bias, first)
        for each in lists:
            each.finish(row, rows)
