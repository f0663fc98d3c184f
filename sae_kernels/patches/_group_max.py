"""The largest pre-act of each of k groups of neighbouring latents (sparsify's `groupmax`), not all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..architectures._slots import latent_sums
from ..architectures._sums import wide
from ..codes import SparseCodes

CHUNK = 4 << 20  # pre-acts at a time, or those of one group and token, if they are more


def group_max(x: Tensor, W: Tensor, b: Tensor, k: int, relu: bool) -> SparseCodes:
    """x (N, d), W (d_sae, d), b (d_sae,); k divides d_sae: group g holds the latents g d_sae/k and on. → codes (N, k),
    one of each group, ties to the smaller latent. With `relu` a value below 0 is an empty slot, else it keeps its sign.

    Pre-acts are of x's dtype, or autocast's, before they are compared, as in the host.

    Gradients:
        of the values to x, W, b; none through empty slots.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, W, b = x.to(dtype), W.to(dtype), b.to(dtype)
    values, indices = _GroupMax.apply(x, W, b, k, relu)
    return SparseCodes(values, indices, len(W))


def _chunks(n: int, groups: int, size: int) -> Iterator[tuple[slice, int, int]]:
    """(tokens, first group, groups) of each chunk."""
    rows = min(n, max(1, CHUNK // size))
    step = max(1, CHUNK // max(1, rows * size))
    for row in range(0, n, max(1, rows)):
        for group in range(0, groups, step):
            yield slice(row, min(n, row + rows)), group, min(step, groups - group)


class _GroupMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
        """Values and indices (int32), (N, k)."""
        size = len(W) // k
        values = x.new_empty(len(x), k)
        indices = torch.empty(len(x), k, dtype=torch.int32, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for rows, group, groups in _chunks(len(x), k, size):
                part = slice(group * size, (group + groups) * size)
                z = torch.addmm(b[part], x[rows], W[part].mT)
                best, at = torch.ops.sae_kernels.topk(z.view(-1, size), 1)
                values[rows, group : group + groups] = best.view(-1, groups)
                starts = torch.arange(group, group + groups, dtype=torch.int32, device=x.device) * size
                indices[rows, group : group + groups] = at.view(-1, groups) + starts
        if relu:
            values.relu_()
        ctx.save_for_backward(x, W, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Through slots that are not empty."""
        x, W, values, indices = ctx.saved_tensors
        grad = torch.where(values != 0, grad, 0.0)
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.sae_kernels.spmm(grad, indices, None, W)
        if ctx.needs_input_grad[1]:
            dW = torch.ops.sae_kernels.spmm_t(grad, indices, None, x, len(W))
        if ctx.needs_input_grad[2]:
            db = latent_sums(grad.to(wide(grad.dtype)), indices, None, len(x), len(W)).to(grad.dtype)
        return dx, dW, db, None, None
