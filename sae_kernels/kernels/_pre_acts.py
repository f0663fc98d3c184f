"""Pre-acts without bias, x Wᵀ, in float32, chunk by chunk in one reused scratch: for fused selections.

The (N, M) tensor never exists. Memory: at most 16 MiB of scores, and for 16-bit inputs 8 MiB each for
float32 copies of the chunk's tokens and latents (or 16 rows of each, where d is so large that this is
more). Products of 16-bit inputs are exact in float32; sums are `torch.mm`'s, and honour torch's float32
matmul precision. Scores are what that GEMM gives for a chunk's shape: the same for any number of threads as
far as the BLAS sees to it. MKL was found to, except for 5 to 15 tokens, which are padded to 16 for that
reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ShapeError, describe

SCORES = 4 << 20  # elements
UPCAST = 2 << 20
ROWS, COLS = 4096, 8192


def even(total: int, most: int, multiple: int) -> int:
    """A chunk size ≤ `most`, up to rounding to `multiple`, that splits `total` into chunks of like size."""
    chunks = -(-total // max(1, most))
    size = -(-total // max(1, chunks))
    return min(total, -(-size // multiple) * multiple)


def part(tensor: Tensor, first: int, count: int) -> Tensor:
    """`count` of a tensor's rows; all of them without a view, which takes as long as a small product."""
    return tensor if count == tensor.shape[0] else tensor[first : first + count]


def _padded(rows: int) -> int:
    """How many tokens to multiply for so many."""
    return 16 if 4 < rows < 16 else rows


class PreActs:
    """Chunks of x Wᵀ: tokens in the outer loop, latents, ascending, in the inner one."""

    def __init__(self, x: Tensor, W: Tensor, max_rows: int = ROWS) -> None:
        self.x, self.W = x.detach(), W.detach()
        (self.n, d), self.m = x.shape, W.shape[0]
        self.upcast = x.dtype != torch.float32
        rows, cols = min(ROWS, max(16, max_rows)), COLS
        if self.upcast:
            rows, cols = min(rows, max(16, UPCAST // max(1, d))), min(cols, max(16, UPCAST // max(1, d)))
        self.rows = even(self.n, rows, 16)
        self.cols = even(self.m, min(cols, max(1, SCORES // max(16, self.rows))), 64 if cols >= 64 else 1)
        padded = _padded(self.rows)
        self._scores = torch.empty(padded, self.cols)
        if self.upcast or padded > self.rows or self.rows < self.n:  # the last tokens may need padding, too
            self._x = torch.empty(padded, d)
        if self.upcast:
            latents_inside = W.stride(1) != 1 and W.stride(0) == 1
            self._W = torch.empty(d, self.cols).mT if latents_inside else torch.empty(self.cols, d)

    def tokens(self) -> Iterator[tuple[int, int]]:
        """(first row, rows) of each chunk of tokens."""
        for row in range(0, self.n, max(1, self.rows)):
            yield row, min(self.rows, self.n - row)

    def scores(self, row: int, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first latent, scores (rows, cols)) of each chunk of latents; the next one overwrites it."""
        x = part(self.x, row, rows)
        padded = _padded(rows)
        if self.upcast or padded != rows:
            copy = self._x[:padded]
            copy[:rows].copy_(x)
            copy[rows:].zero_()
            x = copy
        for first in range(0, self.m, max(1, self.cols)):
            W = part(self.W, first, min(self.cols, self.m - first))
            if self.upcast:
                W = self._W[: W.shape[0]].copy_(W)
            out, shape = self._scores, (padded, W.shape[0])
            if out.shape != shape:
                out = out.view(-1)[: shape[0] * shape[1]].view(shape)
            yield first, part(torch.mm(x, W.mT, out=out), 0, rows)


def check(x: Tensor, W: Tensor, b: Tensor | None, k: int = 0, **per_latent: Tensor | None) -> None:
    """What C++ cannot see for itself: every per-latent array it is handed the address of is (M,), and k ≤ M.

    `linear_*` are torch ops, callable by anyone: an array one element short would be read beyond its end.
    """
    sizes = W.shape
    if (
        not per_latent
        and len(sizes) == 2
        and x.dim() == 2
        and x.shape[1] == sizes[1]
        and (b is None or (b.dim() == 1 and b.shape[0] == sizes[0]))
        and 0 <= k <= sizes[0]
    ):
        return  # a small call has no time for the rest
    if x.dim() != 2 or W.dim() != 2 or x.shape[1] != W.shape[1]:
        raise ShapeError(f"x is {describe(x)}, W is {describe(W)}, expected (N, d) and (M, d)")
    for name, tensor in {"b": b, **per_latent}.items():
        if tensor is not None and tensor.shape != W.shape[:1]:
            raise ShapeError(f"{name} is {describe(tensor)}, expected ({W.shape[0]},)")
    if not 0 <= k <= W.shape[0]:
        raise ShapeError(f"k = {k}, expected 0 <= k <= {W.shape[0]}")


def bias_of(b: Tensor | None, first: int, cols: int) -> Tensor | None:
    """The float32 bias of a chunk's latents, contiguous."""
    return None if b is None else part(b.detach(), first, cols).float().contiguous()


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor's data lies, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
