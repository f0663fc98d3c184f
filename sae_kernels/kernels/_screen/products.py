"""Where screening scores come from: products of inputs rounded to bfloat16 (PyTorch's) or to integers (csrc/screen).

Scores of both are bfloat16, and two norms a row say how far off they may be (csrc/screen/bound.inl.h).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .. import _cpu
from . import integers
from .kept import kept
from .rounded import Rounded, round_rows

Norms = tuple[int, int]  # addresses: of rows, and of what rounding dropped of them


class Products(Protocol):
    """Scores of some tokens and some latents."""

    keeps: bool  # a copy of the weights is at hand
    nbytes: int  # of scratch

    def take(self, x: Tensor) -> Norms:
        """The tokens from now on."""
        ...

    def scores(self, W: Tensor, first: int, out: Tensor) -> Norms:
        """out (tokens, latents) bfloat16, of W's rows `first` onwards: of the copy where there is one, else W's own."""
        ...


class Bfloat16Products:
    """`torch.mm`'s."""

    def __init__(self, rows: int, cols: int, W: Tensor, x_dtype: torch.dtype, whole: bool) -> None:
        copy = kept(W) if whole else None
        self.keeps = copy is not None
        self._tokens = Rounded.empty(rows, W.shape[1], x_dtype)
        self._latents = copy or Rounded.empty(cols, W.shape[1], W.dtype)
        self.nbytes = self._tokens.nbytes + (0 if self.keeps else self._latents.nbytes)

    def take(self, x: Tensor) -> Norms:
        """See `Products`."""
        self._x = round_rows(x, self._tokens)
        return self._x.norms()

    def scores(self, W: Tensor, first: int, out: Tensor) -> Norms:
        """See `Products`."""
        rows = W.shape[0]
        latents = self._latents.part(first, rows) if self.keeps else round_rows(W, self._latents)
        torch.mm(self._x.data, latents.data.mT, out=out)
        return latents.norms()


class IntegerProducts:
    """Our own. Bounds are those that are certain."""

    def __init__(self, products: str, rows: int, cols: int, W: Tensor, whole: bool) -> None:
        self._bits = integers.BITS[products]
        # Chunks of scores are compared with nothing that is exact: more of the copy is looked at than for few tokens.
        self._copy = integers.kept(W, max(rows, integers.MANY), products) if whole else None
        self.keeps = self._copy is not None
        self._room = self._empty(0 if self.keeps else cols, W.shape[1])
        self.nbytes = self._room.nbytes + rows * (W.shape[1] * self._bits // 8 + 20)

    def _empty(self, rows: int, d: int) -> integers.Latents:
        return integers.Latents.empty(rows, d, self._bits)

    def take(self, x: Tensor) -> Norms:
        """See `Products`."""
        self._x = integers.Tokens.of(x, self._bits)
        return self._x.norms()

    def scores(self, W: Tensor, first: int, out: Tensor) -> Norms:
        """See `Products`."""
        rows = W.shape[0]
        if self._copy is not None:
            self._latents = self._copy.part(first, rows)
        elif self._room.packed.shape[0] == -(-rows // integers.GROUP):
            self._latents = self._room.of(W)
        else:
            self._latents = self._empty(*W.shape).of(W)
        args = (*self._x.args(), *self._latents.args(0, rows), W.shape[1])
        _cpu.call("integer_scores", self._bits, *args, *_cpu.pointers(out))
        return self._latents.norms()
