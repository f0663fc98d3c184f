"""JumpReLU and its step in dense PyTorch, with straight-through estimates (arXiv 2407.14435)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class JumpReLU(torch.autograd.Function):
    """z · 1[z > θ]; ∂/∂θ = −(θ/ε) 1[|z − θ| < ε/2], and with `to_input` the opposite of it to z too."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, epsilon: float, to_input: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(z, theta)
        ctx.epsilon, ctx.to_input = epsilon, to_input
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, theta = ctx.saved_tensors
        window = (z - theta).abs() < ctx.epsilon / 2
        estimate = grad * theta / ctx.epsilon * window
        to_z = grad * (z > theta)
        return to_z + estimate if ctx.to_input else to_z, -estimate.sum(0), None, None
