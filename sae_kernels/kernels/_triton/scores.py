"""Scores x Wᵀ in float32, chunk by chunk in one reused scratch: for the fused selections.

The GEMM is the vendor's (cuBLAS, hipBLASLt), with float32 sums and a float32 result, so that a selection is made before
anything is rounded; for float32 inputs it honours torch's float32 matmul precision. A chunk is small enough to be read
again from L2, and large enough to fill the machine. Scratch: at most `budget(...)` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .inputs import cdiv, plain

L2_BYTES = 32 << 20  # of scores, written by the GEMM and read back; an H100 or H200 has 50 MB
LEAST = 1 << 20
ROWS = 8192


def budget(n: int, m: int, itemsize: int) -> int:
    """Bytes of scratch: 5 % of the (N, M) tensor in the inputs' dtype, at least 1 MiB, at most `L2_BYTES`."""
    return min(L2_BYTES, max(LEAST, n * m * itemsize // 20))


def even(total: int, most: int, multiple: int) -> int:
    """A chunk size ≤ `most`, up to rounding to `multiple`, that splits `total` into chunks of like size."""
    size = cdiv(total, max(1, cdiv(total, max(1, most))))
    return max(1, min(total, cdiv(size, multiple) * multiple))


class Scores:
    """Chunks of x Wᵀ (no bias): tokens in the outer loop, latents, ascending, in the inner one."""

    def __init__(self, x: Tensor, W: Tensor) -> None:
        self.x, self.W = plain(x), plain(W)
        self.n, self.m = x.shape[0], W.shape[0]
        elements = budget(self.n, self.m, x.itemsize) // 4
        self.rows = even(self.n, ROWS, 128)
        self.cols = even(self.m, max(128, elements // max(1, self.rows)), 128)
        self._scratch = torch.empty(self.rows * self.cols, dtype=torch.float32, device=x.device)

    def tokens(self) -> Iterator[tuple[int, int]]:
        """(first row, rows) of each chunk of tokens."""
        for row in range(0, self.n, self.rows):
            yield row, min(self.rows, self.n - row)

    def latents(self, row: int, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first latent, scores (rows, cols), contiguous) of each chunk of latents; the next one overwrites it."""
        x = self.x[row : row + rows]
        for first in range(0, self.m, self.cols):
            W = self.W[first : first + self.cols]
            out = self._scratch[: rows * W.shape[0]].view(rows, W.shape[0])
            yield first, product(x, W.mT, out)


def product(x: Tensor, Wt: Tensor, out: Tensor) -> Tensor:
    """x Wᵀ into the float32 `out`."""
    if x.dtype == torch.float32:
        return torch.mm(x, Wt, out=out)
    if x.is_cuda:
        return torch.mm(x, Wt, out_dtype=torch.float32, out=out)
    return torch.mm(x.float(), Wt.float(), out=out)  # the interpreter's: CPU tensors
