"""The tanh penalty and the pre-act loss of JumpReLU: dense by definition, computed some latents at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 4 << 20  # pairs of token and latent at a time: 16 MiB in float32


class DenseTerms(NamedTuple):
    """What `dense_terms` returns: the reconstruction with θ's gradient attached, and two sums over all pairs."""

    reconstruction: Tensor
    tanh: Tensor
    pre_act: Tensor


def dense_terms(
    reconstruction: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    norms: Tensor,
    W_dec: Tensor,
    epsilon: Tensor,
    c: float,
) -> DenseTerms:
    """With z = x W_encᵀ + b_enc and f = z · 1[z > θ], over all N · d_sae pairs:
    tanh = Σ tanh(c f_i ‖d_i‖);  pre_act = Σ ReLU(θ_i − z_i) ‖d_i‖;  the reconstruction as it is.

    Shapes:
        reconstruction (N, d_out), which the caller decoded from the active pairs; x (N, d_in), W_enc (d_sae, d_in),
        b_enc, theta, norms = ‖d_i‖, epsilon (d_sae,), W_dec (d_sae, d_out). θ's dtype, float32 or float64, is that of
        the sums; products are in x's, or in autocast's.

    Gradients:
        to x, W_enc, b_enc, θ, norms: those of the two sums, where f's step depends on z − θ and has the slope of the
        rectangle: with K = 1[|z − θ| < ε/2], ∂f/∂θ = −(θ/ε) K, ∂f/∂z = 1[z > θ] + (θ/ε) K.
        Also these rectangles' part of the reconstruction's, (θ/ε) K (∂L/∂x̂ · d_i), for however wide a window: the
        caller's decode sends θ nothing, and z what passes where z > θ. To `reconstruction`: as it comes. To W_dec:
        none.

    Memory: chunks of at most `CHUNK` pairs (of a latent's N pairs, if these are more), about 6 numbers a pair in
    the backward; nothing of them is kept from forward to backward, where z is computed again. Time: one dense product
    x W_encᵀ forward, four of that size backward.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return DenseTerms(*_DenseTerms.apply(reconstruction, x, W_enc, b_enc, theta, norms, W_dec, epsilon, c))


def _chunks(n: int, d_sae: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, n))
    for first in range(0, d_sae, step):
        yield slice(first, min(d_sae, first + step))


def _pre_acts(x: Tensor, W: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """z of some latents, in `dtype`."""
    return torch.mm(x, W.to(x.dtype).mT).to(dtype).add_(b)


class _DenseTerms(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        reconstruction: Tensor,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        theta: Tensor,
        norms: Tensor,
        W_dec: Tensor,
        epsilon: Tensor,
        c: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, W_enc, b_enc, theta, norms, W_dec, epsilon)
        ctx.c = c
        tanh, pre_act = theta.new_zeros(()), theta.new_zeros(())
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(x.shape[0], W_enc.shape[0]):
                z = _pre_acts(x, W_enc[part], b_enc[part], theta.dtype)
                active = z > theta[part]
                pre_act += (theta[part] - z).relu_().mul_(norms[part]).sum()
                tanh += z.mul_(active).mul_(c * norms[part]).tanh_().sum()
        return reconstruction.view_as(reconstruction), tanh, pre_act

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor, d_tanh: Tensor, d_pre: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, W_enc, b_enc, theta, norms, W_dec, epsilon = ctx.saved_tensors
        dx = torch.zeros_like(x, dtype=theta.dtype)
        dW_enc, db_enc = torch.empty_like(W_enc), torch.empty_like(b_enc)
        d_theta, d_norms = torch.empty_like(theta), torch.empty_like(norms)
        for part in _chunks(x.shape[0], W_enc.shape[0]):
            at, norm, W = theta[part], norms[part], W_enc[part].to(x.dtype)
            z = _pre_acts(x, W, b_enc[part], theta.dtype)
            active, below = z > at, z < at
            slope = torch.where(active, z, 0).mul_(ctx.c * norm).tanh_().square_().neg_().add_(1)  # of tanh; 1 at 0
            short = (at - z).relu_().sum(0)  # ReLU(θ − z)
            d_norms[part] = d_tanh * ctx.c * (slope * z).mul_(active).sum(0) + d_pre * short
            slope.mul_(d_tanh * ctx.c * norm)  # ∂L/∂f of the penalty
            df = torch.mm(dy, W_dec[part].to(dy.dtype).mT).to(theta.dtype).add_(slope)
            df.mul_((z - at).abs_() < epsilon[part] / 2)
            df.mul_(at / epsilon[part])
            dz = slope.mul_(active).sub_(below * (d_pre * norm)).add_(df)
            d_theta[part] = d_pre * norm * below.sum(0) - df.sum(0)
            db_enc[part] = dz.sum(0)
            dz = dz.to(x.dtype)
            dW_enc[part] = torch.mm(dz.mT, x)
            dx += torch.mm(dz, W)
        return dy, dx.to(x.dtype), dW_enc, db_enc, d_theta, d_norms, None, None, None
