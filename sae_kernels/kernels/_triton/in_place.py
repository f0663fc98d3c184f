"""Tensors that a kernel writes: unlike inputs they are never copied, so they must lie as the kernel expects."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import DtypeError, ShapeError, describe


def in_place_why_not(*tensors: Tensor) -> str | None:
    """Why a kernel cannot write these matrices where they are."""
    for tensor in tensors:
        if tensor.dim() != 2:
            return f"{describe(tensor)} is not a matrix"
        rows, cols = tensor.shape
        if (cols > 1 and tensor.stride(1) != 1) or (rows > 1 and tensor.stride(0) < cols):
            return f"strides {tensor.stride()} of a matrix written in place (needs inner stride 1)"
        if tensor.is_neg():
            return f"{describe(tensor)}, written in place, is a lazily negated view"
    return None


def written(tensor: Tensor, what: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor to be written, if its shape and dtype are those expected."""
    if tensor.shape != shape:
        raise ShapeError(f"{what} is {describe(tensor)}, expected shape {shape}")
    if tensor.dtype != dtype:
        raise DtypeError(f"{what} is {describe(tensor)}, expected {str(dtype).removeprefix('torch.')}")
    return tensor.detach()
