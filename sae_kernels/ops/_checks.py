"""The boundary: shapes, dtypes and devices are checked here, once, before any kernel is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError, DeviceError, DtypeError, ShapeError, describe

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OPTIONAL = ("b_enc", "b_dec")  # what may be None


def show(**tensors: Tensor | None) -> str:
    """`x (512, 768) float32 cpu   W_enc (…) …`, for messages."""
    return "   ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())


def floating(op: str, **tensors: Tensor | None) -> None:
    """All given tensors share one floating dtype and one device, and are plain strided tensors."""
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor is None and name in OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise DtypeError(f"{op}: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided:
            raise DtypeError(f"{op}: {name} has layout {tensor.layout}, expected a strided (dense) tensor")
        if tensor.dtype not in DTYPES:
            raise DtypeError(f"{op}: {name} is {describe(tensor)}, expected float32, bfloat16, float16 or float64")
        given[name] = tensor
    first = next(iter(given.values()))
    if any(tensor.dtype != first.dtype for tensor in given.values()):
        raise DtypeError(f"{op}: one dtype expected (cast, or use torch.autocast)\n  {show(**given)}")
    if any(tensor.device != first.device for tensor in given.values()):
        raise DeviceError(f"{op}: one device expected\n  {show(**given)}")


def rank(op: str, name: str, tensor: Tensor, expected: int, shape: str) -> None:
    """`tensor` has `expected` dimensions."""
    if tensor.dim() != expected:
        raise ShapeError(f"{op}: {name} is {describe(tensor)}, expected {shape}")


def linear(op: str, x: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> None:
    """x (…, d_in), W_enc (d_sae, d_in), b_enc (d_sae,) fit together."""
    floating(op, x=x, W_enc=W_enc, b_enc=b_enc)
    rank(op, "W_enc", W_enc, 2, "(d_sae, d_in)")
    if x.dim() < 1:
        raise ShapeError(f"{op}: x is 0-d, expected (…, d_in)")
    if W_enc.shape[0] < 1:
        raise ShapeError(f"{op}: W_enc is {describe(W_enc)}, expected at least one latent")
    if W_enc.shape[0] >= 2**31:
        raise ShapeError(f"{op}: W_enc is {describe(W_enc)}, indices are int32: expected fewer than 2**31 latents")
    if x.shape[-1] != W_enc.shape[1]:
        hint = " (W_enc looks transposed: pass W_enc.mT)" if x.shape[-1] == W_enc.shape[0] else ""
        raise ShapeError(f"{op}: last sizes of x and W_enc must be one d_in{hint}\n  {show(x=x, W_enc=W_enc)}")
    if b_enc is not None and (b_enc.dim() != 1 or b_enc.shape[0] != W_enc.shape[0]):
        raise ShapeError(f"{op}: b_enc must be (d_sae,) = ({W_enc.shape[0]},)\n  {show(W_enc=W_enc, b_enc=b_enc)}")


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
