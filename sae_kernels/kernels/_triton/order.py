"""The order of scores as integers: NaN above +inf … -inf, -0 equal to +0; and selection by it within one program.

Keys are int32, so that comparing and counting are exact and their order does not matter. SENTINEL lies below the key
of every score.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SENTINEL = tl.constexpr(-2147483648)
NAN_KEY = tl.constexpr(0x7FC00000)

LOW_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # that a key of this dtype never uses


@triton.jit
def key_of(score):
    """The key of float32 scores."""
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(score == 0.0, 0, key)
    return tl.where(score != score, NAN_KEY, key)


@triton.jit
def score_of(key):
    """The float32 score of keys: a NaN for NAN_KEY, +0 for either zero."""
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def kth_key(keys, k, LOW: tl.constexpr):
    """The k-th largest of a tile of keys, 1 ≤ k ≤ the number above SENTINEL, found bit by bit: nothing is sorted.

    LOW is `LOW_BITS` of the scores' dtype: those bits are 0 in keys ≥ 0 and 1 in negative ones.
    """
    kth = tl.where(tl.sum((keys >= 0).to(tl.int32)) >= k, 0, SENTINEL)
    for step in range(31 - LOW):
        trial = kth | (1 << (30 - step))
        kth = tl.where(tl.sum((keys >= trial).to(tl.int32)) >= k, trial, kth)
    return tl.where(kth < 0, kth | ((1 << LOW) - 1), kth)


@triton.jit
def kth_key_of_two(a, b, k, LOW: tl.constexpr):
    """`kth_key` over two tiles taken together."""
    kth = tl.where(tl.sum((a >= 0).to(tl.int32)) + tl.sum((b >= 0).to(tl.int32)) >= k, 0, SENTINEL)
    for step in range(31 - LOW):
        trial = kth | (1 << (30 - step))
        enough = tl.sum((a >= trial).to(tl.int32)) + tl.sum((b >= trial).to(tl.int32)) >= k
        kth = tl.where(enough, trial, kth)
    return tl.where(kth < 0, kth | ((1 << LOW) - 1), kth)
