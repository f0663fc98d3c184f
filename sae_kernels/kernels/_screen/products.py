"""Where screening scores come from: products of inputs rounded to bfloat16 (PyTorch's) or to 8 bits (csrc/screen).

Scores of both are bfloat16, and two norms a row say how far off they may be (csrc/screen/bound.inl.h).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .. import _cpu
from . import int8
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


class EightBitProducts:
    """Our own. Bounds are those that are certain."""

    def __init__(self, rows: int, cols: int, W: Tensor, whole: bool) -> None:
        self._copy = int8.kept(W, rows) if whole else None
        self.keeps = self._copy is not None
        self._room = int8.Latents.empty(0 if self.keeps else cols, W.shape[1])
        self.nbytes = self._room.nbytes + rows * (W.shape[1] + 20)

    def take(self, x: Tensor) -> Norms:
        """See `Products`."""
        self._x = int8.Tokens.of(x)
        return self._x.norms()

    def scores(self, W: Tensor, first: int, out: Tensor) -> Norms:
        """See `Products`."""
        rows = W.shape[0]
        if self._copy is not None:
            self._latents = self._copy.part(first, rows)
        elif self._room.packed.shape[0] == -(-rows // int8.GROUP):
            self._latents = self._room.of(W)
        else:
            self._latents = int8.Latents.empty(*W.shape).of(W)
        args = (*self._x.args(), *self._latents.args(0, rows), W.shape[1])
        _cpu.call("int8_scores", *args, *_cpu.pointers(out))
        return self._latents.norms()
