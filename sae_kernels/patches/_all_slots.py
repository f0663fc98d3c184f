"""Decoding where every slot counts, also one whose value is 0.

In `sk.decode` a slot with value 0 is empty and gets no gradient, since a ReLU put the 0 there. A host's decoder takes
acts as they come: there ∂y/∂value is the latent's row of W_dec whatever the value is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _AllSlots(torch.autograd.Function):
    """Σ_j values_j W[indices_j] of each row; the gradient of a value is grad · W[index], at 0 too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
        """values (N, k), indices int32 (N, k), W (d_sae, d)."""
        ctx.save_for_backward(values, indices, W)
        return torch.ops.sae_kernels.spmm(values, indices, None, W)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For values and W, where they are wanted."""
        values, indices, W = ctx.saved_tensors
        d_values = dW = None
        if ctx.needs_input_grad[0]:
            d_values = torch.ops.sae_kernels.sddmm(grad, W, indices, None, torch.ones_like(values))
        if ctx.needs_input_grad[2]:
            dW = torch.ops.sae_kernels.spmm_t(values, indices, None, grad, W.shape[0])
        return d_values, None, dW


def decode_all_slots(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """values, indices (…, k) → (…, d), without a bias."""
    lead, k = values.shape[:-1], values.shape[-1]
    y = _AllSlots.apply(values.reshape(-1, k), indices.reshape(-1, k).int(), W)
    return y.view(*lead, W.shape[1])
