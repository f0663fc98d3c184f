"""Screening scores, chunk by chunk in one reused scratch: x Wᵀ from inputs rounded to bfloat16, in bfloat16.

Memory: 8 MiB of scores, at most 16 MiB of rounded tokens and 4 MiB of rounded latents (or 16 rows of each, where
d is so large that this is more).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import even
from .kept import kept
from .rounded import Rounded, round_rows

SCORES = 4 << 20  # elements
TOKENS, LATENTS = 8 << 20, 2 << 20  # elements of rounded rows
ROWS, COLS = 4096, 8192


class Tokens(NamedTuple):
    """A chunk of tokens, as they are and rounded."""

    row: int
    x: Tensor
    rounded: Rounded


class Chunk(NamedTuple):
    """Scores (tokens, latents) of latents `first` onwards, and what bounds their errors."""

    first: int
    scores: Tensor
    norms: tuple[int, int, int, int]  # addresses: of the tokens and of what rounding dropped, then of the latents


class ScreeningScores:
    """Chunks of scores: tokens in the outer loop, latents, ascending, in the inner one."""

    def __init__(self, x: Tensor, W: Tensor, max_rows: int = ROWS) -> None:
        self.x, self.W = x.detach(), W.detach()
        (self.n, d), self.m = x.shape, W.shape[0]
        self.rows = even(self.n, min(ROWS, max(16, min(max_rows, TOKENS // d))), 16)
        cols = min(COLS, SCORES // self.rows, max(16, LATENTS // d))
        self.cols = even(self.m, cols, 64 if cols >= 64 else 1)
        self._scores = torch.empty(self.rows * self.cols, dtype=torch.bfloat16)
        self._tokens = Rounded.empty(self.rows, d, x.dtype)
        self._kept = kept(W)
        self._latents = self._kept or Rounded.empty(self.cols, d, W.dtype)

    def tokens(self) -> Iterator[Tokens]:
        """Each chunk of tokens."""
        for row in range(0, self.n, self.rows):
            x = _cpu.matrix(self.x[row : row + self.rows])
            yield Tokens(row, x, round_rows(x, self._tokens))

    def scores(self, tokens: Tokens) -> Iterator[Chunk]:
        """Each chunk of latents; the next one overwrites it."""
        rows = tokens.x.shape[0]
        for first in range(0, self.m, self.cols):
            if self._kept is None:
                latents = round_rows(self.W[first : first + self.cols], self._latents)
            else:
                latents = self._kept.part(first, min(self.cols, self.m - first))
            cols = latents.data.shape[0]
            out = self._scores[: rows * cols].view(rows, cols)
            torch.mm(tokens.rounded.data, latents.data.mT, out=out)
            yield Chunk(first, out, (*tokens.rounded.norms(), *latents.norms()))
