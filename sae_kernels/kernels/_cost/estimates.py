"""Estimates as kernels register them: the arguments of an op in, milliseconds out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import model
from .constants import Constants, in_force
from .model import Sizes

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _sizes(matrix: Tensor, indices: Tensor, offsets: Tensor | None, d_sae: int) -> Sizes:
    """Of codes that multiply a matrix of d columns."""
    n = indices.shape[0] if offsets is None else offsets.shape[0] - 1
    dtype = matrix.dtype
    gemm = _NAMES[dtype]
    if gemm == "float32" and matrix.is_cuda and torch.get_float32_matmul_precision() != "highest":
        gemm = "tf32"
    return Sizes(n, matrix.shape[1], d_sae, indices.numel(), dtype.itemsize, gemm)


def _spmm(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Sizes:
    return _sizes(W, indices, offsets, W.shape[0])


def _spmm_t(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Sizes:
    return _sizes(X, indices, offsets, d_sae)


def _sddmm(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Sizes:
    return _sizes(A, indices, offsets, B.shape[0])


def _spmm_backward(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Sizes:
    return _sizes(grad, indices, offsets, W.shape[0])


def _estimate(sizes: Callable[..., Sizes], formula: Callable[[Constants, Sizes], float]) -> Callable[..., float]:
    def estimate(*args: Any) -> float:
        return formula(in_force(args[0].device).constants, sizes(*args))

    return estimate


sparse_spmm = _estimate(_spmm, model.spmm)
sparse_spmm_t = _estimate(_spmm_t, model.spmm_t)
sparse_sddmm = _estimate(_sddmm, model.sddmm)
sparse_spmm_backward = _estimate(_spmm_backward, model.spmm_backward)
dense_spmm = _estimate(_spmm, model.spmm_dense)
dense_spmm_t = _estimate(_spmm_t, model.spmm_t_dense)
dense_sddmm = _estimate(_sddmm, model.sddmm_dense)
dense_spmm_backward = _estimate(_spmm_backward, model.spmm_backward_dense)
