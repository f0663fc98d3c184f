"""Screening scores, chunk by chunk in one reused scratch: x Wᵀ from inputs rounded to fewer bits, in bfloat16.

Candidates are computed row by row of W. Where its rows do not lie in one piece, those of a chunk are copied so that
they do, and candidates have to be settled before the next chunk.

Memory: 8 MiB of scores, at most 16 MiB of rounded tokens, 4 MiB of rounded latents and 8 MiB of such a copy (or 16
rows of each, where d is so large that this is more).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import even
from .integers import BITS
from .products import Bfloat16Products, IntegerProducts, Norms, Products

BFLOAT16 = "bfloat16"  # products to screen with; others: integers.BITS
SCORES = 4 << 20  # elements
TOKENS, LATENTS = 8 << 20, 2 << 20  # elements of rounded rows
ROWS, COLS = 4096, 8192


def in_pieces(W: Tensor) -> bool:
    """The elements of a row of W are not next to each other."""
    return W.shape[1] > 1 and W.stride(1) != 1


def gathered(rows: Tensor, out: Tensor) -> Tensor:
    """Rows that do not lie in one piece, copied so that they do."""
    if rows.stride(0) != 1:
        return out.copy_(rows)
    _cpu.call("columns", _cpu.dtype_code(rows), *_cpu.pointers(rows.mT), out.data_ptr())
    return out


class Tokens(NamedTuple):
    """A chunk of tokens, and the addresses of its norms."""

    row: int
    x: Tensor
    norms: Norms


class Chunk(NamedTuple):
    """Scores (tokens, latents) of latents `first` onwards, and what bounds their errors."""

    first: int
    scores: Tensor
    W: tuple[
        int, int, int, int, int
    ]  # address, sizes and row stride of rows of W that hold these latents; the first one
    norms: tuple[int, int, int, int]  # addresses: of the tokens and of what rounding dropped, then of the latents


class ScreeningScores:
    """Chunks of scores: tokens in the outer loop, latents, ascending, in the inner one."""

    def __init__(self, x: Tensor, W: Tensor, max_rows: int = ROWS, products: str = BFLOAT16) -> None:
        self.x, self.W = x.detach(), W.detach()
        (self.n, d), self.m = x.shape, W.shape[0]
        self.rows = even(self.n, min(ROWS, max(16, min(max_rows, TOKENS // d))), 16)
        cols = min(COLS, SCORES // self.rows, max(16, LATENTS // d))
        self.cols = even(self.m, cols, 64 if cols >= 64 or products in BITS else 1)
        self._scores = torch.empty(self.rows * self.cols, dtype=torch.bfloat16)
        self.settles = in_pieces(W)
        self._rows = torch.empty(self.cols if self.settles else 0, d, dtype=W.dtype)
        self._products: Products
        if products in BITS:
            self._products = IntegerProducts(products, self.rows, self.cols, self.W, not self.settles)
        else:
            self._products = Bfloat16Products(self.rows, self.cols, self.W, x.dtype, not self.settles)

    @property
    def nbytes(self) -> int:
        """Of all scratch."""
        return self._scores.nbytes + self._rows.nbytes + self._products.nbytes

    def tokens(self) -> Iterator[Tokens]:
        """Each chunk of tokens."""
        for row in range(0, self.n, self.rows):
            x = _cpu.matrix(self.x[row : row + self.rows])
            yield Tokens(row, x, self._products.take(x))

    def scores(self, tokens: Tokens) -> Iterator[Chunk]:
        """Each chunk of latents; the next one overwrites it."""
        rows = tokens.x.shape[0]
        for first in range(0, self.m, self.cols):
            W, rows_of_W = self.W[first : first + self.cols], (*_cpu.pointers(self.W), 0)
            cols = W.shape[0]
            if self.settles:
                W = gathered(W, self._rows[:cols])
                rows_of_W = (*_cpu.pointers(W), first)
            out = self._scores[: rows * cols].view(rows, cols)
            norms = self._products.scores(W, first, out)
            yield Chunk(first, out, rows_of_W, (*tokens.norms, *norms))
