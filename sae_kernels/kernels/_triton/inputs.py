"""Arguments made ready for a kernel: shapes checked, strides as a kernel reads them, the right device in force."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import settings
from ...errors import DtypeError, ShapeError, describe
from .._reference import check_indices, check_offsets
from . import interpreting


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """The interpreter's arithmetic is NumPy's, which warns of inf · 0 and overflow; kernels mean them."""
    if not interpreting():
        return contextlib.nullcontext()
    import numpy

    return numpy.errstate(all="ignore")


def launches(run: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a kernel's `run`: Triton launches on the current device, which must be the tensors'."""

    @functools.wraps(run)
    def on_device(*args: Any) -> Any:
        device = args[0].device
        with torch.cuda.device(device) if device.type == "cuda" else _quiet():
            return run(*args)

    return on_device


def cdiv(a: int, b: int) -> int:
    """⌈a/b⌉."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two ≥ max(n, 1)."""
    return 1 << max(0, n - 1).bit_length()


def plain(tensor: Tensor) -> Tensor:
    """The numbers as they lie in memory: a lazily negated view is made real."""
    return tensor.detach().resolve_neg() if tensor.is_neg() else tensor.detach()


def matrix(tensor: Tensor, what: str = "matrix", dtype: torch.dtype | None = None) -> Tensor:
    """A (rows, cols) tensor whose rows can be gathered at full speed: any row stride, inner stride 1.

    A matrix of another inner stride is copied: gathering its rows would read a whole sector for every element.
    """
    if tensor.dim() != 2:
        raise ShapeError(f"{what} is {describe(tensor)}, expected a matrix")
    if dtype is not None and tensor.dtype != dtype:
        raise DtypeError(f"{what} is {describe(tensor)}, expected {str(dtype).removeprefix('torch.')}")
    tensor = plain(tensor)
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else tensor.contiguous()


def flat(tensor: Tensor, what: str, dtype: torch.dtype) -> Tensor:
    """A tensor as one contiguous array."""
    if tensor.dtype != dtype:
        raise DtypeError(f"{what} is {describe(tensor)}, expected {str(dtype).removeprefix('torch.')}")
    return plain(tensor).contiguous()


def checking() -> bool:
    """Indices are read back and checked on the host: in the interpreter, and on a GPU (where it makes the host wait)
    only with SAE_KERNELS_CHECK_INDICES=1. Otherwise kernels stay inside the matrix by themselves: see `Codes`."""
    return interpreting() or settings.read("SAE_KERNELS_CHECK_INDICES") == "1"


class Codes:
    """Codes whose shapes fit, contiguous: `values` (None where the op has none), `indices`, `offsets`, `n`, `k`.

    `k` is 0 for ragged codes. Kernels keep the promise that memory outside a matrix is never touched: an index outside
    [0, d_sae) makes the sum it is in NaN (and is dropped by `transpose`), offsets are clamped to [0, nnz].
    """

    def __init__(
        self,
        values: Tensor | None,
        indices: Tensor,
        offsets: Tensor | None,
        d_sae: int,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
    ) -> None:
        if indices.dim() != (2 if offsets is None else 1):
            raise ShapeError(f"indices are {describe(indices)}, expected (N, k), or (nnz,) with offsets")
        if values is not None and values.shape != indices.shape:
            raise ShapeError(f"values {describe(values)}, indices {describe(indices)}: expected one shape")
        if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] < 1):
            raise ShapeError(f"offsets are {describe(offsets)}, expected (N+1,)")
        self.indices = flat(indices, "indices", torch.int32)
        self.values = None if values is None else flat(values, "values", dtype or values.dtype)
        self.offsets = None if offsets is None else flat(offsets, "offsets", torch.int64)
        self.n, self.k = (indices.shape[0], indices.shape[1]) if offsets is None else (offsets.shape[0] - 1, 0)
        self.nnz = indices.numel()
        self.d_sae = d_sae
        if rows is not None and rows != self.n:
            raise ShapeError(f"codes of {self.n} rows, a matrix of {rows}: expected one number")
        if checking():
            check_indices(self.indices, d_sae)
            if self.offsets is not None:
                check_offsets(self.offsets, self.nnz)
