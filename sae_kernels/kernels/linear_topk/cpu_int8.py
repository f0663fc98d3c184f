"""`linear_topk` on the CPU, screened by 8-bit products: the choice that `cpu` makes, but for a stated probability.

Only by name: `encode(..., screening="int8")`, SAE_KERNELS_SCREENING=int8. What the probability is, and what it is over:
`_screen.integers`. Rows that it does not settle go to `cpu`, and so do all tokens of weights without a copy where they
are fewer than `LEAST_TOKENS`. Products are VNNI's, or with AMX and more than 4 tokens its tiles' (tested in emulation,
not timed): the same integers. Memory and bodies: `in_integers`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _cpu
from .._pre_acts import check
from .._screen.integers import INT8, PROBABILITY, kept, widths
from .._screen.integers import why_not as _why_not
from . import cpu, in_integers
from .problem import Problem

IN_WORDS = f"screened by 8-bit products, {PROBABILITY}"
LEAST_TOKENS = 256  # rounding a weight takes as long as 8 bits save on so many


def why_not(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> str | None:
    """None, or why 8 bits do not serve."""
    return _cpu.why_not(x, W, b) or _why_not(W)


def run(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> list[Tensor]:
    """See `sae_kernels.kernels.linear_topk`. Indices ascend within a row."""
    for k, mask in zip(ks, among, strict=True):
        check(x, W, b, k, among=None if mask is None or mask.numel() == 0 else mask)
    if min(ks, default=0) < 1 or x.numel() == 0:
        return cpu.certain(x, W, b, ks, relus, among)
    copy = kept(W, x.shape[0], INT8)
    if copy is None and x.shape[0] < LEAST_TOKENS:
        return cpu.certain(x, W, b, ks, relus, among)

    problem = Problem(x, W, b, ks, relus, among)
    return in_integers.run(problem, INT8, copy, widths(W.shape[0]), _otherwise)


def _otherwise(problem: Problem) -> list[Tensor]:
    return cpu.certain(*problem)
