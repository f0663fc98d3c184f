"""Decoding dense acts that remember their codes, with the gradient that the acts themselves would get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..ops import decode


def decode_remembered(acts: Tensor, codes: SparseCodes, W: Tensor) -> Tensor:
    """acts W, (…, d), without a bias; W (d_sae, d).

    `acts` are `dense_acts(codes)`. Whoever asks for ∂/∂acts, as attribution does, gets all of it: grad Wᵀ, also where
    the acts are 0, and it costs what it costs with dense acts. The product itself and ∂/∂W are sparse.
    """
    if not (torch.is_grad_enabled() and acts.requires_grad):
        return decode(codes.detach(), W)
    device = acts.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        acts, W = acts.to(dtype), W.to(dtype)
        codes = codes.with_values(codes.values.to(dtype))
    y = _Remembered.apply(acts, *codes.detach().flat(), W)
    return y.view(*codes.lead_shape, W.shape[1])


class _Remembered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
        """`acts` are there for their gradient only."""
        ctx.save_for_backward(values, indices, offsets, W)
        ctx.shape = acts.shape
        return torch.ops.sae_kernels.spmm(values, indices, offsets, W)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Dense for acts, sparse for W."""
        values, indices, offsets, W = ctx.saved_tensors
        d_acts = dW = None
        if ctx.needs_input_grad[0]:
            d_acts = (grad @ W.mT).view(ctx.shape)
        if ctx.needs_input_grad[4]:
            dW = torch.ops.sae_kernels.spmm_t(values, indices, offsets, grad, W.shape[0])
        return d_acts, None, None, None, dW
