"""Kernels of the ragged selections; a program takes ROWS rows (one on a GPU), or a part of each.

*Lists*: a list has room for `room` entries, a float32 score and an int32 latent each, latents ascending; its count says
how many were offered, so a list whose count is above `room` is not complete.
*Sources*: what follows the first pass reads either lists (LISTS) or scores again, as a chunk (rows, stride) of x Wᵀ of
the latents from `first` on. Both are visited in ascending latents; what a row carries from chunk to chunk lies in
memory.
*Rules*: an entry is kept by `z > θ` or NaN (THETA 1: one θ, 2: one per latent), or by its key (THETA 0): above the key
of `state`, or equal to it while there is room for ties.
*state*: int64 (wanted, key): of the scores not below the key, and so close to it that the tally could not tell,
`wanted` are wanted; those further above are all wanted.
*Tallies*: 65,536 bins, by the upper 16 bits of a key or, FINE, by the lower 16 of those that share the state's upper
ones. Neighbouring bins lie 1 KiB apart, so that the busy ones are spread over the memory's channels. Counts are
integers: the order of additions does not matter.
"""

# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .cast import narrow, wide
from .order import SENTINEL, key_of

BINS = 1 << 16
_LOW, _HIGH = tl.constexpr(512), tl.constexpr(128)  # a bin is high · 512 + low and lies at low · 128 + high


@triton.jit
def _above(z, theta, first, column, inside, THETA: tl.constexpr):
    """not z ≤ θ."""
    if THETA == 2:
        return inside & ((z <= tl.load(theta + first + column, mask=inside, other=0.0)) == 0)
    else:
        return inside & ((z <= tl.load(theta)) == 0)


@triton.jit
def _pre_acts(scores, bias, local, first, column, inside, BIAS: tl.constexpr):
    """z of a tile."""
    z = tl.load(scores + local + column, mask=inside, other=0.0)
    if BIAS:
        z += wide(tl.load(bias + first + column, mask=inside, other=0.0))
    return z


@triton.jit
def _any(keep):
    """Something of a tile is kept."""
    return tl.max(tl.max(keep.to(tl.int32), 1), 0) > 0


@triton.jit
def _append(values, latents, local, count, room, z, latent, keep):
    """The kept entries of a tile behind the `count` there are in each row, as far as there is room; the new counts."""
    ones = keep.to(tl.int32)
    slot = count[:, None] + tl.cumsum(ones, 1) - 1
    fits = keep & (slot < room)
    tl.store(values + local + slot, z, mask=fits)
    tl.store(latents + local + slot, latent, mask=fits)
    return count + tl.sum(ones, 1)


@triton.jit(do_not_specialize=["n", "first", "per_row", "part", "width"])
def keep_above(
    scores, bias, theta, values, latents, counts, n: tl.int64, first: tl.int64, cols, room, per_row, part, width,
    BIAS: tl.constexpr, THETA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Append what lies above θ. Program (n, s) takes columns s · width … of row n to list n · per_row + part + s.

    Few scores are kept, so most tiles end with the comparison; the loads of four tiles are in flight together.
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    real = start + row < n
    mine = start * per_row + part + tl.program_id(1)
    scores += start * cols
    values += mine * room
    latents += mine * room
    counts += mine + row * per_row
    count = tl.load(counts, mask=real, other=0)
    end = tl.minimum((tl.program_id(1) + 1) * width, cols)
    local, list = (row * cols)[:, None], (row * per_row * room)[:, None]
    for begin in range(tl.program_id(1) * width, end, 4 * BLOCK):
        at_0 = begin + tl.arange(0, BLOCK)[None, :]
        at_1, at_2, at_3 = at_0 + BLOCK, at_0 + 2 * BLOCK, at_0 + 3 * BLOCK
        z_0 = _pre_acts(scores, bias, local, first, at_0, real[:, None] & (at_0 < end), BIAS)
        z_1 = _pre_acts(scores, bias, local, first, at_1, real[:, None] & (at_1 < end), BIAS)
        z_2 = _pre_acts(scores, bias, local, first, at_2, real[:, None] & (at_2 < end), BIAS)
        z_3 = _pre_acts(scores, bias, local, first, at_3, real[:, None] & (at_3 < end), BIAS)
        keep_0 = _above(z_0, theta, first, at_0, real[:, None] & (at_0 < end), THETA)
        keep_1 = _above(z_1, theta, first, at_1, real[:, None] & (at_1 < end), THETA)
        keep_2 = _above(z_2, theta, first, at_2, real[:, None] & (at_2 < end), THETA)
        keep_3 = _above(z_3, theta, first, at_3, real[:, None] & (at_3 < end), THETA)
        if _any(keep_0):
            count = _append(values, latents, list, count, room, z_0, (first + at_0).to(tl.int32), keep_0)
        if _any(keep_1):
            count = _append(values, latents, list, count, room, z_1, (first + at_1).to(tl.int32), keep_1)
        if _any(keep_2):
            count = _append(values, latents, list, count, room, z_2, (first + at_2).to(tl.int32), keep_2)
        if _any(keep_3):
            count = _append(values, latents, list, count, room, z_3, (first + at_3).to(tl.int32), keep_3)
    tl.store(counts, count, mask=real)


@triton.jit
def _pruned(values, latents, local, count, bound, BLOCK: tl.constexpr):
    """Drop the entries below the bound, in place; the new counts. No tile is written before it was read."""
    kept = count * 0
    for begin in range(0, tl.max(count), BLOCK):
        slot = begin + tl.arange(0, BLOCK)[None, :]
        inside = slot < count[:, None]
        z = tl.load(values + local + slot, mask=inside, other=0.0)
        latent = tl.load(latents + local + slot, mask=inside, other=0)
        keep = inside & (key_of(z) >= bound)
        tl.debug_barrier()
        kept = _append(values, latents, local, kept, begin + BLOCK, z, latent, keep)
    return kept


@triton.jit
def _tallied(tally, index, keep, likely):
    """Count the kept by bin; those of the likely bin by one addition, so that masses of equal scores cost little."""
    together = tl.sum((keep & (index == likely)).to(tl.int32))
    tl.atomic_add(tally + _at(likely), together.to(tl.int64), mask=together > 0, sem="relaxed")
    one = tl.full(index.shape, 1, tl.int64)
    tl.atomic_add(tally + _at(index), one, mask=keep & (index != likely), sem="relaxed")


@triton.jit
def _at(index):
    """Where a bin lies."""
    return (index % _LOW) * _HIGH + index // _LOW


@triton.jit(do_not_specialize=["n", "first"])
def keep_best(
    scores, bias, state, tally, values, latents, counts, n: tl.int64, first: tl.int64, cols, room,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tally and append what is not below the bound; a list more than half full is first pruned by it."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    real = start + row < n
    scores += start * cols
    values += start * room
    latents += start * room
    counts += start + row
    local = (row * room)[:, None]
    bound = tl.load(state + 1).to(tl.int32)
    count = tl.load(counts, mask=real, other=0)
    full = (count > room // 2) & (count <= room)
    if tl.max(full.to(tl.int32)) > 0:
        count = tl.where(full, _pruned(values, latents, local, tl.where(full, count, 0), bound, BLOCK), count)
    base = (row * cols)[:, None]
    for begin in range(0, cols, 4 * BLOCK):
        at_0 = begin + tl.arange(0, BLOCK)[None, :]
        at_1, at_2, at_3 = at_0 + BLOCK, at_0 + 2 * BLOCK, at_0 + 3 * BLOCK
        z_0 = _pre_acts(scores, bias, base, first, at_0, real[:, None] & (at_0 < cols), BIAS)
        z_1 = _pre_acts(scores, bias, base, first, at_1, real[:, None] & (at_1 < cols), BIAS)
        z_2 = _pre_acts(scores, bias, base, first, at_2, real[:, None] & (at_2 < cols), BIAS)
        z_3 = _pre_acts(scores, bias, base, first, at_3, real[:, None] & (at_3 < cols), BIAS)
        keep_0 = real[:, None] & (at_0 < cols) & (key_of(z_0) >= bound)
        keep_1 = real[:, None] & (at_1 < cols) & (key_of(z_1) >= bound)
        keep_2 = real[:, None] & (at_2 < cols) & (key_of(z_2) >= bound)
        keep_3 = real[:, None] & (at_3 < cols) & (key_of(z_3) >= bound)
        if _any(keep_0):
            _tallied(tally, (key_of(z_0) >> 16) + 32768, keep_0, (bound >> 16) + 32768)
            count = _append(values, latents, local, count, room, z_0, (first + at_0).to(tl.int32), keep_0)
        if _any(keep_1):
            _tallied(tally, (key_of(z_1) >> 16) + 32768, keep_1, (bound >> 16) + 32768)
            count = _append(values, latents, local, count, room, z_1, (first + at_1).to(tl.int32), keep_1)
        if _any(keep_2):
            _tallied(tally, (key_of(z_2) >> 16) + 32768, keep_2, (bound >> 16) + 32768)
            count = _append(values, latents, local, count, room, z_2, (first + at_2).to(tl.int32), keep_2)
        if _any(keep_3):
            _tallied(tally, (key_of(z_3) >> 16) + 32768, keep_3, (bound >> 16) + 32768)
            count = _append(values, latents, local, count, room, z_3, (first + at_3).to(tl.int32), keep_3)
    tl.store(counts, tl.minimum(count, room + 1), mask=real)


@triton.jit
def raise_bound(tally, state, raised, FINE: tl.constexpr, STEP: tl.constexpr):
    """From the tally, the largest bin edge that at least `wanted` scores reach.

    Not that many tallied: no bound; FINE, the lowest key in question, so that never too many are kept.
    """
    wanted = tl.load(state)
    key = tl.load(state + 1).to(tl.int32)
    high = tl.arange(0, _HIGH)
    sums = tl.zeros((_HIGH,), tl.int64)
    for begin in range(0, _LOW, STEP):
        low = begin + tl.arange(0, STEP)
        sums += tl.sum(tl.load(tally + low[:, None] * _HIGH + high[None, :]), 0)
    reached = tl.sum(sums, 0) - tl.cumsum(sums, 0) + sums  # scores in this group of bins or above
    group = tl.max(tl.where(reached >= wanted, high, -1), 0)
    above = tl.sum(tl.where(high > group, sums, 0), 0)
    found = group >= 0
    group = tl.maximum(group, 0)
    low = tl.arange(0, _LOW)
    sums = tl.load(tally + low * _HIGH + group)
    reached = above + tl.sum(sums, 0) - tl.cumsum(sums, 0) + sums
    last = tl.max(tl.where(reached >= wanted, low, 0), 0)
    above += tl.sum(tl.where(low > last, sums, 0), 0)
    index = group * _LOW + last
    if FINE:
        edge = tl.where(found, (key & -65536) | index, key & -65536)
    else:
        edge = tl.where(found, (index - 32768) * 65536, SENTINEL)
    tl.store(raised, tl.where(found, wanted - above, wanted))
    tl.store(raised + 1, edge.to(tl.int64))


@triton.jit
def _lengths(lengths, start, row, real, stride, LISTS: tl.constexpr):
    """(ROWS,) entries of each row of a source."""
    if LISTS:
        return tl.load(lengths + start + row, mask=real, other=0)
    else:
        return tl.where(real, stride, 0)


@triton.jit
def _tile(source, latents, bias, local, first, at, inside, LISTS: tl.constexpr, BIAS: tl.constexpr):
    """(z, latent) of a tile of a source."""
    if LISTS:
        z = tl.load(source + local + at, mask=inside, other=0.0)
        return z, tl.load(latents + local + at, mask=inside, other=0)
    else:
        return _pre_acts(source, bias, local, first, at, inside, BIAS), (first + at).to(tl.int32)


@triton.jit(do_not_specialize=["n", "first"], do_not_specialize_on_alignment=["lengths"])
def count_keys(
    source, latents, lengths, bias, state, tally, n: tl.int64, first: tl.int64, stride,
    FINE: tl.constexpr, LISTS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tally a source: keys not below the state's or, FINE, those that share its upper 16 bits."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    length = _lengths(lengths, start, row, start + row < n, stride, LISTS)
    bound = tl.load(state + 1).to(tl.int32)
    source += start * stride
    if LISTS:
        latents += start * stride
    for begin in range(0, tl.max(length), BLOCK):
        at = begin + tl.arange(0, BLOCK)[None, :]
        inside = at < length[:, None]
        z, _ = _tile(source, latents, bias, (row * stride)[:, None], first, at, inside, LISTS, BIAS)
        key = key_of(z)
        if FINE:
            keep = inside & ((key >> 16) == (bound >> 16))
            index = key & 0xFFFF
            likely = tl.maximum(tl.max(tl.where(keep, index, -1)), 0)
        else:
            keep = inside & (key >= bound)
            index = (key >> 16) + 32768
            likely = (bound >> 16) + 32768
        _tallied(tally, index, keep, likely)


@triton.jit(do_not_specialize=["n", "first"], do_not_specialize_on_alignment=["lengths", "kept", "ties"])
def count_kept(
    source, latents, lengths, bias, theta, state, kept, ties, n: tl.int64, first: tl.int64, stride,
    THETA: tl.constexpr, LISTS: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to each row's number of entries that are kept for certain and, by key, of those equal to the bound."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    real = start + row < n
    length = _lengths(lengths, start, row, real, stride, LISTS)
    source += start * stride
    if LISTS:
        latents += start * stride
    kept += start
    ties += start
    sure = tl.load(kept + row, mask=real, other=0)
    equal = tl.load(ties + row, mask=real, other=0)
    for begin in range(0, tl.max(length), BLOCK):
        at = begin + tl.arange(0, BLOCK)[None, :]
        inside = at < length[:, None]
        z, _ = _tile(source, latents, bias, (row * stride)[:, None], first, at, inside, LISTS, BIAS)
        if THETA == 0:
            key = key_of(z)
            bound = tl.load(state + 1).to(tl.int32)
            sure += tl.sum((inside & (key > bound)).to(tl.int32), 1)
            equal += tl.sum((inside & (key == bound)).to(tl.int32), 1)
        else:
            sure += tl.sum(_above(z, theta, first, at, inside, THETA).to(tl.int32), 1)
    tl.store(kept + row, sure, mask=real)
    tl.store(ties + row, equal, mask=real)


@triton.jit(do_not_specialize=["n", "first"], do_not_specialize_on_alignment=["lengths", "starts", "ends", "ties"])
def fill_rows(
    source, latents, lengths, bias, theta, state, starts, ends, ties, values, indices, n: tl.int64, first: tl.int64,
    stride, THETA: tl.constexpr, RELU: tl.constexpr, LISTS: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the kept entries from each row's start on, never at its end or beyond; start and ties left go on from chunk
    to chunk. Lists that were chosen by θ are copied as they are."""
    program = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    real = program + row < n
    length = _lengths(lengths, program, row, real, stride, LISTS)
    source += program * stride
    if LISTS:
        latents += program * stride
    starts += program + row
    start = tl.load(starts, mask=real, other=0)
    end = tl.load(ends + program + row, mask=real, other=0)
    left = tl.zeros((ROWS,), tl.int32)
    if THETA == 0:
        left = tl.load(ties + program + row, mask=real, other=0)
    for begin in range(0, tl.max(length), BLOCK):
        at = begin + tl.arange(0, BLOCK)[None, :]
        inside = at < length[:, None]
        z, latent = _tile(source, latents, bias, (row * stride)[:, None], first, at, inside, LISTS, BIAS)
        if THETA == 0:
            key = key_of(z)
            bound = tl.load(state + 1).to(tl.int32)
            equal = (inside & (key == bound)).to(tl.int32)
            tie = (equal != 0) & (tl.cumsum(equal, 1) <= left[:, None])
            keep = (inside & (key > bound)) | tie
            left -= tl.sum(tie.to(tl.int32), 1)
        elif LISTS:
            keep = inside
        else:
            keep = _above(z, theta, first, at, inside, THETA)
        ones = keep.to(tl.int32)
        slot = start[:, None] + tl.cumsum(ones, 1) - 1
        written = keep & (slot < end[:, None])
        if RELU:
            z = tl.where(z <= 0.0, 0.0, z)  # NaN stays
        tl.store(values + slot, narrow(z, values.dtype.element_ty), mask=written)
        tl.store(indices + slot, latent, mask=written)
        start += tl.sum(ones, 1)
    if not LISTS:
        tl.store(starts, start, mask=real)
        if THETA == 0:
            tl.store(ties + program + row, left, mask=real)
