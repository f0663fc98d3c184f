"""Milliseconds of the products, sparse and dense, from their sizes. An estimate, not a promise.

Sparse: every slot gathers a row of d numbers. Dense: the codes are written into a table of (tokens, latents) numbers,
of which one chunk exists at a time, and multiplied. Far from small sizes a sparse product costs k·d·bytes / gather a
token and a dense one 2·d·M / GEMM: dense is the cheaper where M/k < GEMM · bytes / (2 · gather), about 184 on an H200
in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

from .constants import Constants

SCRATCH_BYTES = 64 << 20  # of the chunk of a dense table; or as many as the (m, d) matrix has, if that is larger
LINE_BYTES = 32  # memory is read in pieces of at least that size


class Sizes(NamedTuple):
    """n tokens, d wide, m latents, nnz slots in all; `itemsize` bytes a number, `gemm` one of `constants.GEMM`."""

    n: int
    d: int
    m: int
    nnz: int
    itemsize: int
    gemm: str

    @property
    def k(self) -> float:
        """Slots a token."""
        return self.nnz / max(self.n, 1)


def chunk(total: int, bytes_each: int, matrix_bytes: int) -> int:
    """How many rows (or columns) of a dense table exist at a time, of `total` that take `bytes_each`: even chunks.

    Few rows at a time would keep the GEMM from its rate where there are many latents; there the (m, d) matrix is large,
    too, and one more scratch of its size is what the caller can afford.
    """
    most = max(1, max(SCRATCH_BYTES, matrix_bytes) // max(1, bytes_each))
    chunks = max(1, -(-total // most))
    return max(1, -(-total // chunks))


def _gather(c: Constants, size: Sizes, rows: int) -> float:
    """Seconds to gather a row for every slot out of a matrix of `rows`; what lies in the cache comes faster."""
    matrix = max(1, rows * size.d * size.itemsize)
    cached = min(1.0, c.cache / matrix)
    row = max(LINE_BYTES, size.d * size.itemsize) if size.d else 0
    return size.nnz * row * (cached / c.gather_cached + (1 - cached) / c.gather)


def _codes(c: Constants, size: Sizes) -> float:
    """Seconds to read the codes once."""
    return size.nnz * (4 + size.itemsize) / c.copy


def _matrices(c: Constants, size: Sizes, tokens: int, latents: int) -> float:
    """Seconds to read or write so many (n, d) and (m, d) matrices once."""
    return (tokens * size.n + latents * size.m) * size.d * size.itemsize / c.copy


def spmm(c: Constants, size: Sizes) -> float:
    """A row of W for every slot."""
    return 1e3 * (2 * c.launch + _codes(c, size) + _gather(c, size, size.m) + _matrices(c, size, 1, 0))


def sddmm(c: Constants, size: Sizes) -> float:
    """A row of B for every slot, one of A for every token."""
    return spmm(c, size)


def spmm_t(c: Constants, size: Sizes) -> float:
    """Slots sorted by latent, then a row of X for every slot; every latent's row is written."""
    sort = 6 * c.launch + size.nnz * c.sort
    return 1e3 * (sort + _gather(c, size, size.n) + _matrices(c, size, 0, 1))


def spmm_backward(c: Constants, size: Sizes) -> float:
    """Slots sorted by latent, one gather for both gradients."""
    return spmm_t(c, size) + 1e3 * (_matrices(c, size, 0, 1) + _codes(c, size))


def _table(c: Constants, size: Sizes, scratch: float) -> float:
    """Seconds to make the scratch, write the codes into it and clear them again, duplicates found before."""
    rounded = size.n * size.m * c.rounding if size.itemsize < 4 else 0.0
    return scratch / c.copy + size.nnz * (2 * c.scatter + size.k * c.pair) + rounded


def _product(c: Constants, size: Sizes, rows: int, chunks: int) -> float:
    """Seconds of the GEMMs: few rows at a time keep a GEMM from its rate; each reads its operands."""
    flops = 2.0 * size.n * size.d * size.m / (c.gemm[size.gemm] * rows / (rows + c.half_rows))
    moved = size.n * size.m * size.itemsize / c.copy + _matrices(c, size, 2, 2)
    return max(flops, moved) + 6 * c.launch * chunks


def spmm_dense(c: Constants, size: Sizes) -> float:
    """Chunks of tokens: table (rows, m) · W (m, d)."""
    rows = chunk(size.n, size.m * size.itemsize, size.m * size.d * size.itemsize)
    chunks = -(-size.n // rows)
    return 1e3 * (_table(c, size, rows * size.m * size.itemsize) + _product(c, size, rows, chunks))


def sddmm_dense(c: Constants, size: Sizes) -> float:
    """Chunks of tokens: A (rows, d) · Bᵀ (d, m) in float32, of which the codes' positions are picked."""
    rows = chunk(size.n, 4 * size.m, size.m * size.d * size.itemsize)
    chunks = -(-size.n // rows)
    picked = size.nnz * c.scatter + size.n * size.m * 4 / c.copy
    return 1e3 * (picked + _product(c, size, rows, chunks))


def spmm_t_dense(c: Constants, size: Sizes) -> float:
    """Chunks of latents: tableᵀ (cols, n) · X (n, d); every chunk reads all codes."""
    cols = chunk(size.m, size.n * size.itemsize, size.m * size.d * size.itemsize)
    chunks = -(-size.m // cols)
    table = _table(c, size, cols * size.n * size.itemsize) + 2 * chunks * _codes(c, size)
    return 1e3 * (table + _product(c, size, cols, chunks))


def spmm_backward_dense(c: Constants, size: Sizes) -> float:
    """The two products one after the other."""
    return sddmm_dense(c, size) + spmm_t_dense(c, size)


def break_even(c: Constants, gemm: str, itemsize: int, k: int = 64, n: int = 4096, d: int = 1024) -> float:
    """The d_sae / k below which a decode is estimated to be faster dense."""
    low, high = 1.0, 1e5
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        size = Sizes(n, d, int(middle * k), n * k, itemsize, gemm)
        if spmm_dense(c, size) < spmm(c, size):
            low = middle
        else:
            high = middle
    return low
