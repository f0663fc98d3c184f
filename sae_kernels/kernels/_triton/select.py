"""The k best of each row of scores in memory: exact, in time that does not depend on the scores.

Order: value descending (NaN first, -0 equal to +0), then index ascending. Cut a row into groups of g consecutive
scores, and rank groups by their maximum, then by their number. *The k best scores lie in the k best groups*: let s be
a score of a group G that is not among them. Each of the k better groups holds a maximum that is larger than G's, so
than s, or equal to it in a group further left, so ahead of s: k scores come before s.

So a long row is read once, for the maxima of its groups; the k best maxima are chosen (by the same method where they
are many); then the k·g scores of the chosen groups are read again and the k best of them kept. A choice is made within
one program, by a search for the k-th key bit by bit and a running count. Where k is too large for that, `_general`
takes the row in tiles, several times over.

Strides are plain integer arguments: Triton then knows an inner stride of 1, which 16-byte loads need.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interpreting
from .cast import narrow, wide
from .inputs import cdiv, next_power_of_2
from .order import LOW_BITS, NOBODY, SENTINEL, count, kth_key, rough_key, settled, slots_above
from .tuning import Config, pick

ALONE = 2048  # scores that are chosen from at once, without groups
MOST = 8192  # the largest tile a choice is made in
SCRATCH_BYTES = 128 << 20  # of maxima; more tokens than fit are taken in turns


@triton.jit
def _read(rows, bias, among, columns, inside, stride, KEYS: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr):
    """(scores + bias in float32, keys): the key is rough, and SENTINEL outside and where the mask says no."""
    at = rows + columns.to(tl.int64) * stride
    if KEYS:
        key = tl.load(at, mask=inside, other=0)
        score = key
    else:
        score = wide(tl.load(at, mask=inside, other=0.0))
        if BIAS:
            score += wide(tl.load(bias + columns, mask=inside, other=0.0))
        key = rough_key(score)
    if AMONG:
        inside = inside & (tl.load(among + columns, mask=inside, other=0) != 0)
    return score, tl.where(inside, key, SENTINEL)


@triton.jit
def _write(values, indices, base, slot, chosen, score, columns, VALUES: tl.constexpr, RELU: tl.constexpr):
    """The chosen ones, to their slots from `base` on."""
    if VALUES:
        if RELU:
            score = tl.where(score <= 0.0, 0.0, score)  # NaN stays
        tl.store(values + base + slot, narrow(score, values.dtype.element_ty), mask=chosen)
    tl.store(indices + base + slot, columns, mask=chosen)


@triton.jit
def fill(values, indices, row, found, inside, k, VALUES: tl.constexpr, TILE_K: tl.constexpr):
    """Slots from `found` on, which nobody was there for: empty (value 0, index 0), or no group (-1)."""
    for first in range(0, k, TILE_K):
        slot = first + tl.arange(0, TILE_K)[None, :]
        empty = (slot >= found[:, None]) & (slot < k) & inside[:, None]
        at = row[:, None] * k + slot
        if VALUES:
            tl.store(values + at, narrow(at.to(tl.float32) * 0.0, values.dtype.element_ty), mask=empty)
            tl.store(indices + at, slot * 0, mask=empty)
        else:
            tl.store(indices + at, slot * 0 - 1, mask=empty)


@triton.jit
def _ties(keys, kth, k):
    """How many that are equal to the k-th key are wanted."""
    return k - count(keys > kth[:, None])


@triton.jit
def _emit(
    rows, bias, among, values, indices, start, kth, ties, valid, m, k, stride,
    ROWS: tl.constexpr, PART: tl.constexpr, KEYS: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr,
    VALUES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Read rows again, part by part, and write those above the k-th key and the first `ties` equal ones; how many."""
    local = tl.arange(0, ROWS) * k
    found = ties * 0
    for first in range(0, m, PART):
        columns = first + tl.arange(0, PART)[None, :]
        inside = valid[:, None] & (columns < m)
        score, key = _read(rows, bias, among, columns, inside, stride, KEYS, BIAS, AMONG)
        chosen, slot, above, equal = slots_above(settled(key), kth, ties)
        slot += (local + found)[:, None]
        _write(values, indices, start * k, slot, chosen, score, columns + slot * 0, VALUES, RELU)
        taken = tl.minimum(equal, ties)
        found += above + taken
        ties -= taken
    return found


@triton.jit(do_not_specialize=["n"])
def _alone(
    scores, bias, among, values, indices, n: tl.int64, stride_n, stride_m, m, k,
    ROWS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, TILE_K: tl.constexpr, LOW: tl.constexpr,
    KEYS: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr, VALUES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """One program chooses from whole rows."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    columns = tl.arange(0, TILE)[None, :]
    rows = scores + (row * stride_n)[:, None]
    inside = (row < n)[:, None] & (columns < m)
    _, key = _read(rows, bias, among, columns, inside, stride_m, KEYS, BIAS, AMONG)
    key = settled(key)
    kth = kth_key(key, k, LOW)
    found = _emit(
        rows, bias, among, values, indices, start, kth, _ties(key, kth, k), row < n, m, k, stride_m,
        ROWS, PART, KEYS, BIAS, AMONG, VALUES, RELU,
    )  # fmt: skip
    if AMONG or KEYS:  # noqa: SIM102  (the outer one is decided at compile time)
        if tl.min(found) < k:
            fill(values, indices, row, found, row < n, k, VALUES, TILE_K)


@triton.jit
def _maxima(
    scores, bias, among, maxima, stride_n, stride_m, m, groups,
    GROUPS: tl.constexpr, G: tl.constexpr, KEYS: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr,
):  # fmt: skip
    """Keys of the maxima of GROUPS groups."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = group[:, None] * G + tl.arange(0, G)[None, :]
    _, key = _read(scores + row * stride_n, bias, among, columns, columns < m, stride_m, KEYS, BIAS, AMONG)
    tl.store(maxima + row * groups + group, settled(tl.max(key, 1)), mask=group < groups)


@triton.jit
def _read_groups(
    rows, bias, among, picked, row, n, first, m, k, stride,
    ROWS: tl.constexpr, COUNT: tl.constexpr, G: tl.constexpr, KEYS: tl.constexpr, BIAS: tl.constexpr,
    AMONG: tl.constexpr,
):  # fmt: skip
    """(scores, keys, columns), each (ROWS, COUNT · G), of COUNT picked groups from `first` on."""
    slots = first + tl.arange(0, COUNT)[None, :]
    group = tl.load(picked + row[:, None] * k + slots, mask=(row < n)[:, None] & (slots < k), other=-1)
    columns = group[:, :, None] * G + tl.arange(0, G)[None, None, :]
    inside = (columns >= 0) & (columns < m)
    score, key = _read(rows[:, None, None], bias, among, columns, inside, stride, KEYS, BIAS, AMONG)
    TILE: tl.constexpr = COUNT * G
    return tl.reshape(score, (ROWS, TILE)), tl.reshape(settled(key), (ROWS, TILE)), tl.reshape(columns, (ROWS, TILE))


@triton.jit(do_not_specialize=["n"])
def _candidates(
    scores, bias, among, picked, values, indices, n: tl.int64, stride_n, stride_m, m, k,
    ROWS: tl.constexpr, TILE_K: tl.constexpr, PART: tl.constexpr, G: tl.constexpr, LOW: tl.constexpr,
    KEYS: tl.constexpr, BIAS: tl.constexpr, AMONG: tl.constexpr, VALUES: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """One program chooses from the `picked` groups of its rows, which ascend; PART of them are written at a time."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    rows = scores + row * stride_n
    _, key, _ = _read_groups(
        rows, bias, among, picked, row, n, 0, m, k, stride_m, ROWS, TILE_K, G, KEYS, BIAS, AMONG
    )  # fmt: skip
    kth = kth_key(key, k, LOW)
    ties = _ties(key, kth, k)
    local = tl.arange(0, ROWS) * k
    found = ties * 0
    for first in range(0, k, PART):
        score, part, columns = _read_groups(
            rows, bias, among, picked, row, n, first, m, k, stride_m, ROWS, PART, G, KEYS, BIAS, AMONG
        )  # fmt: skip
        chosen, slot, above, equal = slots_above(part, kth, ties)
        slot += (local + found)[:, None]
        _write(values, indices, start * k, slot, chosen, score, columns, VALUES, RELU)
        taken = tl.minimum(equal, ties)
        found += above + taken
        ties -= taken
    if AMONG or KEYS:  # noqa: SIM102
        if tl.min(found) < k:
            fill(values, indices, row, found, row < n, k, VALUES, TILE_K)


@triton.jit
def _general(
    scores, bias, among, values, indices, stride_n, stride_m, m, k: tl.int32,
    TILE: tl.constexpr, PART: tl.constexpr, LOW: tl.constexpr, KEYS: tl.constexpr, BIAS: tl.constexpr,
    AMONG: tl.constexpr, VALUES: tl.constexpr, RELU: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One program reads a row tile by tile: once for each byte of the k-th key, counting, and once to write."""
    row0 = tl.program_id(0).to(tl.int64)
    row = row0 + tl.arange(0, 1)
    rows = scores + (row * stride_n)[:, None]
    byte = tl.arange(0, 256)
    kth = tl.full((1,), 0, tl.uint32)  # the bytes found, of keys moved to be unsigned
    ties = tl.full((1,), 0, tl.int32) + k  # how many are to come from those that agree with them
    lacking = ties < 0
    for step in tl.static_range(4 - LOW // 8):
        counts = tl.zeros((1, 256), tl.int32)
        for first in range(0, m, TILE):
            columns = first + tl.arange(0, TILE)[None, :]
            _, key = _read(rows, bias, among, columns, columns < m, stride_m, KEYS, BIAS, AMONG)
            bits = (settled(key) ^ SENTINEL).to(tl.uint32, bitcast=True) >> (24 - 8 * step)
            alike = key != SENTINEL
            if step > 0:
                alike = alike & ((bits >> 8) == kth[:, None])
            digits = tl.reshape((bits & 255).to(tl.int32), (TILE,))
            counts += tl.histogram(digits, 256, mask=tl.reshape(alike, (TILE,)))[None, :]
        reaching = tl.sum(counts, 1)[:, None] - tl.cumsum(counts, 1) + counts  # with this byte or a larger one
        found = tl.sum((reaching >= ties[:, None]).to(tl.int32), 1) - 1
        lacking = lacking | (found < 0)
        found = tl.maximum(found, 0)
        ties -= tl.sum(tl.where(byte[None, :] > found[:, None], counts, 0), 1)
        kth = (kth << 8) | found.to(tl.uint32)
    SKIPPED: tl.constexpr = 8 * (LOW // 8)
    signed = (kth << SKIPPED).to(tl.int32, bitcast=True) ^ SENTINEL
    signed = tl.where(signed < 0, signed | ((1 << SKIPPED) - 1), signed)
    signed = tl.where(lacking, NOBODY, signed)
    ties = tl.where(lacking, 0, ties)
    total = _emit(
        rows, bias, among, values, indices, row0, signed, ties, row >= 0, m, k, stride_m,
        1, PART, KEYS, BIAS, AMONG, VALUES, RELU,
    )  # fmt: skip
    if AMONG or KEYS:  # noqa: SIM102
        if tl.min(total) < k:
            fill(values, indices, row, total, row >= 0, k, VALUES, TILE_K)


def group_size(m: int, k: int) -> int:
    """g, a power of two: maxima and scores of chosen groups, both within MOST, cost about the same. 1: no groups, all
    chosen from at once; 0: k is too large, tile by tile."""
    tile, room = next_power_of_2(m), MOST // next_power_of_2(k)
    work = {g: next_power_of_2(cdiv(m, g)) + next_power_of_2(k) * g for g in (128, 64, 32, 16, 8, 4, 2) if g <= room}
    best = min(work, key=lambda g: work[g], default=0)
    if tile <= ALONE or (tile <= MOST and (not best or 2 * work[best] >= tile)):
        return 1
    return best


def plans(m: int, k: int) -> list[Config]:
    """How a row is taken: the group size, and the number of maxima from which on they are grouped in their turn."""
    g = group_size(m, k)
    near = [each for each in (g, 2 * g, g // 2) if g == each or 2 <= each <= MOST // next_power_of_2(k)]
    return [Config({"G": each, "MOST": MOST}) for each in near]


def maxima_configs(g: int) -> list[Config]:
    """Scores a program: 8 kB of 16-bit ones (16 of float32), in 16-byte loads."""
    return [Config({"GROUPS": max(1, size // g)}, num_warps=warps) for size, warps in ((4096, 4), (8192, 8), (2048, 2))]


def choice_configs(tile: int) -> list[Config]:
    """Rows and warps of a program that chooses from tiles, 32 keys a thread, and how many elements it writes at a time:
    8 a thread, for these need many registers each."""
    if interpreting():  # where programs are dear, and tiles cheap
        return [Config({"ROWS": max(1, min(16, MOST // tile)), "PART": tile})]
    rows, warps = max(1, 128 // tile), min(16, max(1, tile // 1024))
    return [
        Config({"ROWS": rows, "PART": min(tile, 256 * each)}, each, 1)
        for each in (warps, 2 * warps, max(1, warps // 2))
    ]


def general_configs() -> list[Config]:
    """One shape serves."""
    return [Config({"TILE": 4096, "PART": 4096 if interpreting() else 2048}, 8, 1)]


def best_of_rows(
    scores: Tensor,
    k: int,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    among: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Write the k best of each row of `scores` + `bias` among the latents of `among`; indices ascend.

    Shapes: scores (N, M) of any strides; bias (M,), added in float32, or None; among (M,) uint8 or None; values and
    indices int32 (N, k), contiguous. Where the mask leaves fewer than k, the last slots hold value 0, index 0.
    """
    (n, m), k = scores.shape, int(k)
    if n == 0 or k == 0:
        return
    low = LOW_BITS[scores.dtype] if bias is None else 0
    rows = max(16, SCRATCH_BYTES // (4 * cdiv(m, max(2, _plan(m, k)[0]))) // 16 * 16)  # 16: every part is aligned
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        _choose(scores[part], k, values[part], indices[part], bias, among, relu, low)


def _plan(m: int, k: int) -> tuple[int, int]:
    """(g, most) of `plans`; one forced or measured for other sizes is not followed where its tiles would burst."""
    size_class = f"m<={next_power_of_2(m)}, k<={next_power_of_2(k)}"
    built_in = plans(m, k)
    tiles = pick("topk", size_class, built_in).tiles
    if max(next_power_of_2(k) * tiles["G"], m if tiles["G"] == 1 else 0) > 2 * MOST:
        tiles = built_in[0].tiles
    return tiles["G"], tiles["MOST"]


def _choose(
    scores: Tensor, k: int, values: Tensor | None, indices: Tensor, bias: Tensor | None, among: Tensor | None,
    relu: bool, low: int, plan: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """`best_of_rows` of scores or, without `values`, of int32 keys."""
    n, m = scores.shape
    g, most = plan or _plan(m, k)
    keys = scores.dtype == torch.int32
    flags = {"KEYS": keys, "BIAS": bias is not None, "AMONG": among is not None}
    out = {"LOW": low, "VALUES": values is not None, "RELU": relu, "TILE_K": next_power_of_2(k)}
    strides = scores.stride()
    if g == 0:
        config = pick("topk.general", "", general_configs())
        out["TILE_K"] = 1024
        _general[n,](scores, bias, among, values, indices, *strides, m, k, **out, **flags, **config.meta)
    elif g == 1:
        tile = next_power_of_2(m)
        config = pick("topk.alone", f"tile {tile}", choice_configs(tile))
        _alone[cdiv(n, config.tiles["ROWS"]),](
            scores, bias, among, values, indices, n, *strides, m, k, TILE=tile, **out, **flags, **config.meta
        )  # fmt: skip
    else:
        groups = cdiv(m, g)
        maxima = torch.empty(n, groups, dtype=torch.int32, device=scores.device)
        config = pick("topk.maxima", f"{scores.itemsize} bytes, g {g}", maxima_configs(g))
        grid = (n, cdiv(groups, config.tiles["GROUPS"]))
        _maxima[grid](scores, bias, among, maxima, *strides, m, groups, G=g, **flags, **config.meta)
        picked = torch.empty(n, k, dtype=torch.int32, device=scores.device)
        _choose(maxima, k, None, picked, None, None, False, low, (1 if groups <= most else g, most))
        tile = next_power_of_2(k) * g
        config = pick("topk.candidates", f"tile {tile}", choice_configs(tile))
        _candidates[cdiv(n, config.tiles["ROWS"]),](
            scores, bias, among, picked, values, indices, n, *strides, m, k, G=g, **out, **flags,
            **{**config.meta, "PART": max(1, config.tiles["PART"] // g)},
        )  # fmt: skip
