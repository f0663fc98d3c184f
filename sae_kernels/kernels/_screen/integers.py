"""Rows of integers, whose products bound an inner product: for certain, or more narrowly but for a stated probability.

16 bits are what AVX2 multiplies at 1.5 to 2 times the rate of float32. Rows are rounded to steps of |x| / 32500
(csrc/screen/round_16.inl.h); their products are off by d / 56000 standard deviations of x · w, for certain. 8 bits are
VNNI's, at four times the rate, and what the rest is about.

What is rounded. Both x and w are rotated by one orthogonal matrix (random signs and Hadamard transforms: x · w stays,
outlier coordinates are spread), then rounded to multiples of a step of their own, s = max |·| / 126.5, with
subtractive dither: with u_j drawn uniformly from (-½, ½), q_j = round(w_j / s + u_j), and w_j is taken to be s (q_j -
u_j). The error w_j - s (q_j - u_j) is s e_j with e_j uniform on (-½, ½), *whatever w is*: that is what subtracting
the dither is for. All latents share one u, all tokens another, v; so x · w becomes s_x s_w (p - v) · (q - u), an
integer product p · q and numbers that belong to one side alone.

How far off that is, for certain. x · w - x̂ · ŵ = (x - x̂) · w + x̂ · (w - ŵ), and so, by Cauchy and Schwarz, at most
|x - x̂| |w| + (|x| + |x - x̂|) |w - ŵ|: the norms of what rounding left are kept with the rows. Of normal numbers that is
√d / 62 standard deviations of x · w, 0.45 at d = 768. It is the default, wherever it pays (`policy`).

How far off it is but for a probability. (x - x̂) · w and x̂ · (w - ŵ) are sums of d independent terms each: x - x̂ = s_x f
with f from v, and, v being given, w - ŵ = s_w e with e from u. A uniform number on (-½, ½) is sub-Gaussian with its
own variance: E exp(λ e_j) ≤ exp(λ² / 24). Hence, with |x̂| ≤ X = |x| + s_x √d / 2 whatever v is,

    E exp(λ (x · w - x̂ · ŵ)) ≤ exp(λ² V / 2),  V = ((s_x |w|)² + (s_w X)²) / 12,
    P(|x · w - x̂ · ŵ| > t) ≤ 2 exp(-t² / 2V).

That is Hoeffding's argument with the error's variance in the place of its range squared. With a union bound over the
M latents of a token, t = √(2 V ln(2 M / RISK)) holds for all of them at once with probability at least 1 - RISK; and
where it holds, what screening drops cannot be among the k best. Uniform numbers are drawn on a grid of 2¹⁴ points
(sub-Gaussian with no more, since such a number plus a uniform one on a cell is uniform); rounding rows to that grid,
and all float32 arithmetic, is bounded without chance and added (csrc/screen/round_8.inl.h).

What the probability is over: signs, u and v, and nothing else. No distribution of activations or weights is assumed:
for every x, W, b that were chosen without knowledge of u and v, adversarially even, a token's latents are exactly the
k best with probability at least 1 - RISK. u and v come from a fixed seed: the same input gives the same result every
time, on any number of threads. It follows that a failure would repeat, that tokens of one W are not independent draws
(the *expected* number of wrong tokens among n is at most RISK n all the same), and that inputs computed from u and v
are not covered.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from .kept import keep

RISK = 1e-9  # of a token's choice being wrong
PROBABILITY = f"exact with probability at least 1 - 1e{round(math.log10(RISK))} a token"
MOST_D = 1 << 16
GROUP = 32  # latents that lie together: csrc/screen/integer_layout.inl.h
INT8, INT16 = "int8", "int16"  # products of them
BITS = {INT8: 8, INT16: 16}


@functools.cache
def vnni() -> bool:
    """The processor multiplies 8-bit numbers fast, without AMX."""
    return _cpu.ask("fast_int8")


def why_not(W: Tensor) -> str | None:
    """Why 8-bit products do not serve these weights, on the CPU and in a dtype of the kernels; None: they do."""
    if _cpu.isa() not in ("avx512", "amx"):
        return f"instruction set is {_cpu.isa()} (needs avx512 with VNNI)"
    if not vnni():
        return "this processor lacks VNNI (needs avx512 with VNNI)"
    if W.shape[1] > MOST_D:
        return f"d is {W.shape[1]} (needs at most {MOST_D})"
    if W.shape[1] > 1 and W.stride(1) != 1:
        return f"W's rows do not lie in one piece, strides {tuple(W.stride())} (needs inner stride 1: W.contiguous())"
    if W.is_neg():
        return "W is a negated view (needs W.resolve_neg())"
    return None


CERTAIN = 0.0  # in the place of `widths`


def widths(m: int) -> float:
    """t / √((s_x |w|)² + (s_w X)²), for m latents."""
    return math.sqrt(math.log(2 * m / RISK) / 6)


def candidates_room(products: str, k: int, d: int) -> int:
    """Candidates of a token that there is room for, under bounds which are certain: about twice those that they keep,
    of normal pre-acts. The reach of 8 bits is √d / 62 standard deviations, that of others much less."""
    room = _cpu.ask("screened_topk_room", k)
    return max(room, int(k * (11 + (d / 680) ** 2))) if products == INT8 else room


class Latents(NamedTuple):
    """Rows of W as integers, in groups that lie as the products read them, and five numbers for each."""

    packed: Tensor  # uint8 (groups, bytes of a row * 32)
    numbers: Tensor  # float32 (5, 32 groups)
    bits: int

    @staticmethod
    def empty(rows: int, d: int, bits: int) -> Latents:
        """Room for so many."""
        groups = -(-rows // GROUP)
        packed = _cpu.empty(groups, _cpu.ask("integer_width", bits, d) * GROUP, dtype=torch.uint8)
        return Latents(packed, torch.empty(5, groups * GROUP), bits)

    @staticmethod
    def bytes_of(W: Tensor, bits: int) -> int:
        """What a copy of W takes."""
        return -(-W.shape[0] // GROUP) * GROUP * (_cpu.ask("integer_width", bits, W.shape[1]) + 20)

    def of(self, W: Tensor) -> Latents:
        """Filled with W's rows: with no other number of them than there is room for."""
        args = (*_cpu.pointers(W), self.packed.data_ptr(), self.numbers.data_ptr())
        _cpu.call("integer_latents", _cpu.dtype_code(W), self.bits, *args)
        return self

    def same(self, W: Tensor, groups: int, calls: int) -> bool:
        """Whether some groups, others at each call, are still what W's rows become."""
        every = self.packed.shape[0]
        first = groups * calls % every
        last = min(every, first + groups)
        rows = W[first * GROUP : last * GROUP]
        again = Latents.empty(rows.shape[0], W.shape[1], self.bits).of(rows)
        numbers = self.numbers[:, first * GROUP : last * GROUP].contiguous()
        same = torch.equal(again.numbers.view(torch.int32), numbers.view(torch.int32))  # NaN is NaN
        return same and torch.equal(again.packed, self.packed[first:last])

    def part(self, first: int, rows: int) -> Latents:
        """Those of some of the rows, from a whole group on."""
        groups = slice(first // GROUP, -(-(first + rows) // GROUP))
        numbers = self.numbers[:, groups.start * GROUP : groups.stop * GROUP].contiguous()
        return Latents(self.packed[groups], numbers, self.bits)

    def norms(self) -> tuple[int, int]:
        """Addresses: of the rows' norms, and of those of what rounding left of them."""
        return self.numbers[2].data_ptr(), self.numbers[4].data_ptr()

    def args(self, first: int, rows: int) -> tuple[int, int, int, int, int]:
        """As C++ takes them: latents `first` onwards."""
        return self.packed.data_ptr(), self.numbers.data_ptr(), self.numbers.shape[1], first, rows

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.packed.nbytes + self.numbers.nbytes


LOOKED_AT = 64  # one group in so many is compared with the weights at each call
MANY = 256  # tokens; with fewer, one group is


def kept(W: Tensor, tokens: int, products: str) -> Latents | None:
    """The copy of these very weights, made when they are met for the second time.

    What tells that they are the same: see `_screen.kept`. The sample that is compared holds 32 latents, others at each
    call, or one in 64 where there are many tokens: a change to all rows that moved no version counter is seen at once,
    one to a single row after a while (64 calls with many tokens), or, in a selection of its own, when its exact score
    contradicts the copy.
    """
    W, bits = W.detach(), BITS[products]
    groups = max(1, -(-W.shape[0] // GROUP) // LOOKED_AT) if tokens >= MANY else 1

    def make() -> Latents:
        return Latents.empty(W.shape[0], W.shape[1], bits).of(W)

    return keep(W, products, Latents.bytes_of(W, bits), make, lambda copy, calls: copy.same(W, groups, calls))


class Tokens(NamedTuple):
    """Rows of x as integers."""

    packed: Tensor
    numbers: Tensor
    starts: Tensor

    @staticmethod
    def of(x: Tensor, bits: int) -> Tokens:
        """From rows in one piece."""
        n, d = x.shape
        run = -(-_cpu.ask("integer_width", bits, d) // 64) * 64
        packed = torch.empty((n + 31) * run, dtype=torch.uint8)  # as they lie on any instruction set: kernels.h
        made = Tokens(packed, torch.empty(4, n), torch.empty(n, dtype=torch.int32))
        _cpu.call("integer_tokens", _cpu.dtype_code(x), bits, *_cpu.pointers(x), *(each.data_ptr() for each in made))
        return made

    def norms(self) -> tuple[int, int]:
        """Addresses: of the rows' norms, and of what is certain of the bounds."""
        return self.numbers[1].data_ptr(), self.numbers[2].data_ptr()

    def args(self) -> tuple[int, int, int, int]:
        """As C++ takes them."""
        return self.packed.data_ptr(), self.numbers.data_ptr(), self.starts.data_ptr(), self.starts.shape[0]
