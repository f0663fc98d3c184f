"""Decoding where every slot counts, also one whose value is 0.

In `sk.decode` a slot with value 0 is empty and gets no gradient, since a ReLU put the 0 there. A host's decoder takes
acts as they come: there ∂y/∂value is the latent's row of W_dec whatever the value is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes


class _AllSlots(torch.autograd.Function):
    """Σ_j values_j W[indices_j] of each row; the gradient of a value is grad · W[index], at 0 too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
        """values and indices (int32) (N, k), or (nnz,) with offsets; W (d_sae, d)."""
        ctx.save_for_backward(values, indices, offsets, W)
        return torch.ops.sae_kernels.spmm(values, indices, offsets, W)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For values and W, where they are wanted: both in one pass, which leaves out slots at 0, and then those."""
        values, indices, offsets, W = ctx.saved_tensors
        ops = torch.ops.sae_kernels
        if not ctx.needs_input_grad[0]:
            return None, None, None, ops.spmm_t(values, indices, offsets, grad, W.shape[0])
        if not ctx.needs_input_grad[3]:
            return ops.sddmm(grad, W, indices, offsets, torch.ones_like(values)), None, None, None
        d_values, dW = ops.spmm_backward(grad, values, indices, offsets, W)
        empty = values == 0
        if not values.is_cpu or bool(empty.any()):
            d_values = d_values + ops.sddmm(grad, W, indices, offsets, empty.to(values.dtype))
        return d_values, None, None, dW


def decode_all_slots(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """values, indices (…, k) → (…, d), without a bias."""
    lead, k = values.shape[:-1], values.shape[-1]
    y = _AllSlots.apply(values.reshape(-1, k), indices.reshape(-1, k).int(), None, W)
    return y.view(*lead, W.shape[1])


def decode_codes_all_slots(codes: SparseCodes, W: Tensor) -> Tensor:
    """(N, d), without a bias; inside `torch.autocast` in its dtype."""
    values, indices, offsets = codes.flat()
    device = values.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, W = values.to(dtype), W.to(dtype)
    return _AllSlots.apply(values, indices, offsets, W)
