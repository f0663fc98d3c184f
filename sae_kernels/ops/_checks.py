"""The boundary: shapes, dtypes and devices are checked here, once, before any kernel is chosen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import ArgumentError, DeviceError, DtypeError, ShapeError, describe

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OPTIONAL = ("b_enc", "b_dec")  # what may be None
ORDINARY = (Tensor, Parameter)
STRIDED = torch.strided


def show(**tensors: Tensor | None) -> str:
    """`x (512, 768) float32 cpu   W_enc (…) …`, for messages."""
    return "   ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())


def floating(op: str, **tensors: Tensor | None) -> None:
    """All given tensors share one floating dtype and one device, and are plain strided tensors."""
    first, one_dtype, one_device = None, True, True
    for name, tensor in tensors.items():
        if tensor is None and name in OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise DtypeError(f"{op}: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided:
            raise DtypeError(f"{op}: {name} has layout {tensor.layout}, expected a strided (dense) tensor")
        if tensor.dtype not in DTYPES:
            raise DtypeError(f"{op}: {name} is {describe(tensor)}, expected float32, bfloat16, float16 or float64")
        if first is None:
            first = tensor
        elif tensor.dtype != first.dtype:
            one_dtype = False
        elif tensor.device != first.device:
            one_device = False
    if one_dtype and one_device:
        return
    shown = show(**{name: tensor for name, tensor in tensors.items() if tensor is not None})
    if not one_dtype:
        raise DtypeError(f"{op}: one dtype expected (cast, or use torch.autocast)\n  {shown}")
    raise DeviceError(f"{op}: one device expected\n  {shown}")


def rank(op: str, name: str, tensor: Tensor, expected: int, shape: str) -> None:
    """`tensor` has `expected` dimensions."""
    if tensor.dim() != expected:
        raise ShapeError(f"{op}: {name} is {describe(tensor)}, expected {shape}")


def usual(first: Any, *others: Any) -> bool:
    """Whether these are ordinary tensors on the CPU, of one floating dtype, with no negative bit, and nothing is being
    compiled: in a tenth of the time that `floating` takes, and without a word on what is wrong."""
    if (
        torch.compiler.is_compiling()
        or type(first) not in ORDINARY
        or (dtype := first.dtype) not in DTYPES
        or not first.is_cpu
        or first.layout is not STRIDED
        or first.is_neg()
    ):
        return False
    for tensor in others:  # the same again: one loop over all takes 1.9 µs for 1.7
        if (
            type(tensor) not in ORDINARY
            or tensor.dtype is not dtype
            or not tensor.is_cpu
            or tensor.layout is not STRIDED
            or tensor.is_neg()
        ):
            return False
    return True


def linear(op: str, x: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> torch.dtype | None:
    """x (…, d_in), W_enc (d_sae, d_in), b_enc (d_sae,) fit together. → their `kind` (see `Op`)."""
    if usual(x, W_enc) if b_enc is None else usual(x, W_enc, b_enc):
        sizes, of_x = W_enc.shape, x.shape
        if (
            len(sizes) == 2
            and len(of_x) >= 1
            and 1 <= sizes[0] < 2**31
            and of_x[-1] == sizes[1]
            and (b_enc is None or b_enc.shape == sizes[:1])
        ):
            return x.dtype
    floating(op, x=x, W_enc=W_enc, b_enc=b_enc)
    rank(op, "W_enc", W_enc, 2, "(d_sae, d_in)")
    if x.dim() < 1:
        raise ShapeError(f"{op}: x is 0-d, expected (…, d_in)")
    d_sae, d_in = W_enc.shape
    if d_sae < 1:
        raise ShapeError(f"{op}: W_enc is {describe(W_enc)}, expected at least one latent")
    if d_sae >= 2**31:
        raise ShapeError(f"{op}: W_enc is {describe(W_enc)}, indices are int32: expected fewer than 2**31 latents")
    if x.shape[-1] != d_in:
        hint = " (W_enc looks transposed: pass W_enc.mT)" if x.shape[-1] == d_sae else ""
        raise ShapeError(f"{op}: last sizes of x and W_enc must be one d_in{hint}\n  {show(x=x, W_enc=W_enc)}")
    if b_enc is not None and (b_enc.dim() != 1 or b_enc.shape[0] != d_sae):
        raise ShapeError(f"{op}: b_enc must be (d_sae,) = ({d_sae},)\n  {show(W_enc=W_enc, b_enc=b_enc)}")


def matrix(x: Tensor) -> Tensor:
    """(…, d) as (N, d)."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def k_fits(op: str, k: int, d_sae: int) -> None:
    """k ≤ d_sae (that it is a positive integer, the selection saw to itself)."""
    if k > d_sae:
        raise ArgumentError(f"{op}: k = {k}, expected 1 <= k <= d_sae = {d_sae}")


def positive_integer(name: str, value: object) -> int:
    """`value` as an int ≥ 1; bools, floats and tensors are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ArgumentError(f"{name} = {value!r} ({type(value).__name__}), expected a positive integer")
    if value < 1:
        raise ArgumentError(f"{name} = {value}, expected a positive integer")
    return value  # pyright: ignore[reportReturnType]


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Inside `torch.autocast`: everything in its dtype, as `F.linear` does; gradients flow back through the cast."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    first = next(tensor for tensor in tensors if tensor is not None)
    device = (
        first.device.type if isinstance(first, Tensor) else "cpu"
    )  # a stranger is refused by the checks that follow
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if isinstance(tensor, Tensor) and tensor.dtype in DTYPES[:3] else tensor for tensor in tensors
    )
