"""Straight-through estimates of a threshold's gradient, on the pairs of token and latent near it alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import settings
from ..codes import SparseCodes
from ..kernels import OPS
from ..ops.decode import check
from ._slots import latent_sums


class Jump(NamedTuple):
    """What `jump` returns."""

    codes: SparseCodes
    reconstruction: Tensor
    l0: Tensor


def window(bandwidth: Tensor | float, theta: Tensor, dtype: torch.dtype) -> Tensor:
    """ε of each latent, (d_sae,): `bandwidth`, but at least four of the steps in which numbers of `dtype` lie around
    θ. In 16 bits pre-acts are so coarse that a narrower window could hold none of them, and θ would stand still."""
    return torch.clamp(4 * torch.finfo(dtype).eps * theta.detach(), min=bandwidth)


def jump(pre_acts: SparseCodes, theta: Tensor, epsilon: Tensor, W_dec: Tensor, b_dec: Tensor | None) -> Jump:
    """f = z · 1[z > θ];  x̂ = f W_dec + b_dec;  L0 = (1/N) Σ 1[z > θ], with straight-through gradients to θ.

    Shapes:
        `pre_acts`: every pair with z > θ − ε/2, ragged, as `encode(…, Threshold(theta - epsilon / 2))` gives them.
        theta, epsilon (d_sae,) float32 (float64 with float64 values). → codes in the same slots (0, an empty slot,
        where z ≤ θ), reconstruction (…, d_out), l0 0-d in θ's dtype.

    Gradients:
        of reconstruction and l0. To z: through f where z > θ. To θ, with the rectangle K = 1[|z − θ| < ε/2]:
        ∂f/∂θ = −(θ/ε) K and ∂1[z > θ]/∂θ = −(1/ε) K, also where z ≤ θ and the slot is empty. To W_dec, b_dec: as
        `decode`. None through `codes`. Beside its inputs the backward keeps nothing.

    Source: arXiv 2407.14435.
    """
    values, W_dec, b_dec, _ = check("jump", pre_acts, W_dec, b_dec)
    args = values, theta, epsilon, W_dec, pre_acts.indices, pre_acts.offsets, pre_acts.n_rows
    y, f, l0 = _Jump.apply(*args, settings.chosen_backend())
    if b_dec is not None:
        y = y + b_dec
    return Jump(pre_acts.with_values(f), y.reshape(*pre_acts.lead_shape, W_dec.shape[1]), l0)


def _active(z: Tensor, theta: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Where z is not ≤ θ (so that NaN passes on), and θ at the slots."""
    at = theta.index_select(0, indices)
    return ~(z <= at), at


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        z: Tensor,
        theta: Tensor,
        epsilon: Tensor,
        W_dec: Tensor,
        indices: Tensor,
        offsets: Tensor,
        n: int,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        active, _ = _active(z, theta, indices)
        f = torch.where(active, z, 0)
        ctx.save_for_backward(z, theta, epsilon, W_dec, indices, offsets)
        ctx.n, ctx.backend = max(1, n), backend
        ctx.mark_non_differentiable(f)
        l0 = active.sum().to(theta.dtype) / ctx.n
        return OPS["spmm"](f, indices, offsets, W_dec, backend=backend), f, l0

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, _: Tensor, d_l0: Tensor
    ) -> tuple[Tensor | None, ...]:
        z, theta, epsilon, W_dec, indices, offsets = ctx.saved_tensors
        on = {"backend": ctx.backend}
        active, at = _active(z, theta, indices)
        width = epsilon.index_select(0, indices)
        near = (z - at).abs() < width / 2
        df, dW = OPS["spmm_backward"](dy, torch.where(active, z, 0), indices, offsets, W_dec, **on)
        below = (near & ~active).to(z.dtype)  # empty slots, which a product's gradient leaves out
        df_below = OPS["sddmm"](dy, W_dec, indices, offsets, below, **on)
        slope = at * torch.where(active, df, df_below) + d_l0 / ctx.n
        d_theta = latent_sums(torch.where(near, -slope / width, 0), indices, offsets, ctx.n, len(theta), ctx.backend)
        return df, d_theta, None, dW, None, None, None, None


def full_jump(z: Tensor, theta: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """`jump` for a matrix of pre-acts: f = z · 1[z > θ] and L0 = (1/N) Σ 1[z > θ]. f may go into one product and
    nothing else: its gradient is overwritten.

    Shapes:
        z (N, d_sae), theta, epsilon (d_sae,) float32 (float64 with float64 pre-acts) → f (N, d_sae) in z's dtype, l0
        0-d in θ's.

    Gradients:
        to z and θ, as `jump`.
    """
    return _FullJump.apply(z, theta, epsilon)  # pyright: ignore[reportReturnType]


class _FullJump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(z, theta, epsilon)
        active = ~(z <= theta)
        return torch.where(active, z, 0), active.sum().to(theta.dtype) / max(1, len(z))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, df: Tensor, d_l0: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, theta, epsilon = ctx.saved_tensors
        slope = (theta * df).add_(d_l0 / max(1, len(z)))
        slope.masked_fill_((z - theta).abs_() >= epsilon / 2, 0)
        return df.masked_fill_(z <= theta, 0), -slope.sum(0) / epsilon, None
