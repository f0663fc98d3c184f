"""The order of scores as integers: NaN above +inf … -inf, -0 equal to +0; and selection by it within one program.

Keys are int32, so that comparing and counting are exact and their order does not matter. SENTINEL lies below the key
of every score: it stands for "not there".
"""

# pyright: reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

SENTINEL = tl.constexpr(-2147483648)
NOBODY = tl.constexpr(-2147483647)  # above SENTINEL, below the key of every score
NAN_KEY = tl.constexpr(0x7FC00000)

LOW_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # that a key of this dtype never uses


@triton.jit
def rough_key(score):
    """The key of float32 scores, except that -0 lies just below +0: `settled` makes them equal.

    `settled` never turns the order round, so the largest settled key is the settled largest rough key.
    """
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score != score, NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def settled(key):
    """The key of rough keys: -1 is that of -0 and of nothing else."""
    return tl.where(key == -1, 0, key)


@triton.jit
def key_of(score):
    """The key of float32 scores."""
    return settled(rough_key(score))


@triton.jit
def score_of(key):
    """The float32 score of keys: a NaN for NAN_KEY, +0 for either zero."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _completed(kth, LOW: tl.constexpr):
    """The bits a dtype never uses are 0 in keys ≥ 0 and 1 in negative ones. Where nothing was found: NOBODY."""
    return tl.maximum(tl.where(kth < 0, kth | ((1 << LOW) - 1), kth), NOBODY)


@triton.jit
def count(condition):
    """How many of each row of a tile."""
    return tl.sum(condition.to(tl.int32), 1)


@triton.jit
def kth_key(keys, k, LOW: tl.constexpr):
    """The k-th largest of each row of a (ROWS, TILE) tile of keys, k ≥ 1, found bit by bit: nothing is sorted.

    LOW is `LOW_BITS` of the scores' dtype. Where fewer than k lie above SENTINEL: NOBODY.
    """
    kth = tl.where(count(keys >= 0) >= k, 0, SENTINEL)
    for step in range(31 - LOW):
        trial = kth | (1 << (30 - step))
        kth = tl.where(count(keys >= trial[:, None]) >= k, trial, kth)
    return _completed(kth, LOW)


@triton.jit
def kth_key_of_two(a, b, k, LOW: tl.constexpr):
    """`kth_key` over the rows of two tiles taken together."""
    kth = tl.where(count(a >= 0) + count(b >= 0) >= k, 0, SENTINEL)
    for step in range(31 - LOW):
        trial = kth | (1 << (30 - step))
        enough = count(a >= trial[:, None]) + count(b >= trial[:, None]) >= k
        kth = tl.where(enough, trial, kth)
    return _completed(kth, LOW)


@triton.jit
def slots_above(keys, kth, ties):
    """Who of each row of a tile is chosen by the k-th key, and where it goes: those above it, and the first `ties`
    equal ones.

    Returns (chosen, slot, number above, number equal); slots count up in the row's order. The running counts of both
    kinds share one scan: a row has fewer than 2¹⁵ elements.
    """
    above, equal = (keys > kth[:, None]).to(tl.int32), (keys == kth[:, None]).to(tl.int32)
    counts = tl.cumsum(above + (equal << 16), 1)
    n_above, n_equal = counts & 0xFFFF, counts >> 16
    chosen = (above != 0) | ((equal != 0) & (n_equal <= ties[:, None]))
    slot = n_above + tl.minimum(n_equal, ties[:, None]) - 1
    return chosen, slot, tl.sum(above, 1), tl.sum(equal, 1)


@triton.jit
def chosen_slots(keys, k, LOW: tl.constexpr):
    """The k best of each row, ties to the first: (chosen, slot, how many: fewer than k where fewer are there)."""
    kth = kth_key(keys, k, LOW)
    ties = k - count(keys > kth[:, None])
    chosen, slot, above, equal = slots_above(keys, kth, ties)
    return chosen, slot, above + tl.minimum(equal, ties)
