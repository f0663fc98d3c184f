"""Scores x Wᵀ in float32, chunk by chunk in one reused scratch: for the fused selections.

The GEMM is the vendor's where torch offers it with float32 sums and a float32 result (float32 inputs anywhere; 16-bit
ones with CUDA from torch 2.8 on), and Triton's elsewhere: a selection is made before anything is rounded. For float32
inputs torch's float32 matmul precision is honoured. A chunk is small enough to be read again from L2, and large enough
to fill the machine. Scratch: at most `budget(...)` bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from . import gemm, interpreting
from .inputs import cdiv, plain
from .tuning import Config, pick

L2_BYTES = 32 << 20  # of scores, written by the GEMM and read back; an H100 or H200 has 50 MB
LEAST = 8 << 20
ROWS = 8192


def budget(n: int, m: int, itemsize: int) -> int:
    """Bytes of scratch: 5 % of the (N, M) tensor in the inputs' dtype, at least 8 MiB, at most `L2_BYTES`."""
    return min(L2_BYTES, max(LEAST, n * m * itemsize // 20))


def even(total: int, most: int, multiple: int) -> int:
    """A chunk size ≤ `most`, up to rounding to `multiple`, that splits `total` into chunks of like size."""
    size = cdiv(total, max(1, cdiv(total, max(1, most))))
    return max(1, min(total, cdiv(size, multiple) * multiple))


class Scores:
    """Chunks of x Wᵀ (no bias): tokens in the outer loop, latents, ascending, in the inner one.

    `rows` and `cols` are the size of a chunk; by default the scratch they need is the budget.
    """

    def __init__(self, x: Tensor, W: Tensor, rows: int = 0, cols: int = 0) -> None:
        self.x, self.W = plain(x), plain(W)
        self.n, self.m = x.shape[0], W.shape[0]
        elements = budget(self.n, self.m, x.itemsize) // 4
        self.rows = min(self.n, rows) if rows else even(self.n, ROWS, 128)
        self.cols = min(self.m, cols) if cols else even(self.m, max(128, elements // max(1, self.rows)), 128)
        self._scratch = torch.empty(self.rows * self.cols, dtype=torch.float32, device=x.device)
        self._triton = bool(pick("scores", str(x.dtype), configs(x.dtype)).tiles["TRITON"])

    def tokens(self) -> Iterator[tuple[int, int]]:
        """(first row, rows) of each chunk of tokens."""
        for row in range(0, self.n, max(1, self.rows)):
            yield row, min(self.rows, self.n - row)

    def latents(self, row: int, rows: int) -> Iterator[tuple[int, Tensor]]:
        """(first latent, scores (rows, cols), contiguous) of each chunk of latents; the next one overwrites it."""
        for first in range(0, self.m, max(1, self.cols)):
            yield first, self.chunk(row, rows, first, self.cols)

    def chunk(self, row: int, rows: int, first: int, cols: int) -> Tensor:
        """Scores of at most `self.rows` tokens and `self.cols` latents, contiguous; the next chunk overwrites them."""
        x, W = self.x[row : row + rows], self.W[first : first + cols]
        out = self._scratch[: rows * W.shape[0]].view(rows, W.shape[0])
        return gemm.product(x, W, out) if self._triton else product(x, W.mT, out)


@functools.cache
def vendor_gemm(dtype: torch.dtype) -> bool:
    """torch multiplies matrices of this dtype into a float32 result."""
    if dtype == torch.float32 or interpreting():
        return True
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch.version.hip is None and version >= (2, 8)


def configs(dtype: torch.dtype) -> list[Config]:
    """Whose GEMM."""
    return [Config({"TRITON": int(each)}) for each in ((False, True) if vendor_gemm(dtype) else (True,))]


def product(x: Tensor, Wt: Tensor, out: Tensor) -> Tensor:
    """x Wᵀ into the float32 `out`, by torch."""
    if x.shape[1] == 0:
        return out.zero_()
    if x.is_cuda:
        return torch.mm(x, Wt, out=out) if x.dtype == torch.float32 else torch.mm(x, Wt, out_dtype=out.dtype, out=out)
    if interpreting():
        return torch.mm(x.float(), Wt.float(), out=out)
    return out  # compiling ahead of time: nothing is computed
