"""Codes as a dense table, one chunk of it at a time in one scratch: for the products that PyTorch's GEMM does faster.

The backend `dense` is never the first choice: it runs where the cost model (`_cost`) finds it cheaper than the sparse
kernel, or where it is asked for. What it does not share with the sparse kernels:

- It multiplies by the zeros. A row of W with an infinity or a NaN that no code uses, or only empty slots, makes every
  sum NaN (0 · inf); sparse kernels never read that row. Looking for such rows first would take as long as reading W.
- Sums are PyTorch's: the same from run to run, but on the CPU perhaps in another order for another number of threads.

Latents that stand in a row twice are added in float32 in a fixed order and rounded once, to the dtype of the product.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ...errors import ShapeError, describe
from .._cost.model import SCRATCH_BYTES, chunk
from .._reference import check_indices, check_offsets
from .._triton import on_gpu, placed, same_dtype
from .._triton.inputs import Codes, plain

CUBLAS = ":4096:8", ":16:8"  # CUBLAS_WORKSPACE_CONFIG with which torch calls cuBLAS deterministic


class Table(Protocol):
    """Windows of the (tokens, latents) table of some codes."""

    def fill(self, row: int, rows: int, latent: int, cols: int) -> Tensor:
        """The window (rows, cols) that starts there; the next call of `fill` needs a `clear` first."""
        ...

    def clear(self) -> None:
        """Take the codes out of the scratch again: cheaper than zeroing all of it."""
        ...


def table(codes: Codes, dtype: torch.dtype, window: int, drop: bool) -> Table:
    """A table with room for windows of that many elements. An index outside the dictionary is an error where indices
    are checked; elsewhere it makes its row NaN, or with `drop` is left out."""
    if on_gpu(codes.indices):
        from .._triton.densify import DeviceTable

        return DeviceTable(codes, dtype, window, drop)
    from .host import HostTable

    return HostTable(codes, dtype, window)


def spans(total: int, bytes_each: int, matrix: Tensor) -> Iterator[tuple[int, int]]:
    """(first, count) of even chunks of `total` lines that take `bytes_each`, each within the scratch that is allowed
    beside the (latents, d) `matrix`."""
    step = chunk(total, bytes_each, matrix.numel() * matrix.itemsize)
    for first in range(0, total, step):
        yield first, min(step, total - first)


def product(A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
    """A B with float32 sums: rounded to the inputs' dtype on the CPU, in float32 on a GPU (where a result in 16 bits
    lets cuBLAS add partial sums in 16 bits)."""
    if A.dtype == torch.float32:
        return torch.mm(A, B) if out is None else torch.mm(A, B, out=out)
    if A.is_cuda:
        found = torch.mm(A, B, out_dtype=torch.float32)
    elif on_gpu(A):
        found = A.float() @ B.float()  # the interpreter's: as a GPU does it
    else:
        found = torch.mm(A, B)
    return found if out is None else out.copy_(found)


def operand(tensor: Tensor, what: str) -> Tensor:
    """A matrix as torch multiplies it: any strides."""
    if tensor.dim() != 2:
        raise ShapeError(f"{what} is {describe(tensor)}, expected a matrix")
    return plain(tensor)


def codes(
    values: Tensor | None,
    indices: Tensor,
    offsets: Tensor | None,
    d_sae: int,
    dtype: torch.dtype,
    rows: int | None = None,
) -> Codes:
    """Codes whose shapes fit; on the CPU, indices and offsets are checked as well."""
    found = Codes(values, indices, offsets, d_sae, dtype, rows)
    if not on_gpu(indices):
        check_indices(found.indices, d_sae)
        if found.offsets is not None:
            check_offsets(found.offsets, found.nnz)
    return found


def why_not(numbers: tuple[Tensor | None, ...], codes: tuple[Tensor | None, ...], lines: Tensor) -> str | None:
    """None, or why PyTorch's GEMM is not used: for `numbers` of one dtype, indices and offsets, and a matrix with a row
    for each element of a line of the table."""
    here = lines.device
    for tensor in (*numbers, *codes):
        if tensor is not None and (tensor.layout is not torch.strided or tensor.device != here):
            return f"{describe(tensor)} {tensor.layout} beside {describe(lines)} (needs strided tensors of one device)"
    if here.type != "cpu":
        reason = placed(lines)
        if reason is not None:
            return reason
        importlib.import_module("sae_kernels.kernels._triton.densify")
        if torch.are_deterministic_algorithms_enabled() and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS:
            return f"deterministic algorithms are asked for: set CUBLAS_WORKSPACE_CONFIG to {' or '.join(CUBLAS)}"
    if lines.dim() == 2 and 4 * lines.shape[0] > SCRATCH_BYTES:
        return f"a line of the dense table has {lines.shape[0]} numbers (needs at most {SCRATCH_BYTES // 4})"
    return same_dtype(*numbers)
