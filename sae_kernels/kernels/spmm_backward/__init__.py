"""`spmm_backward`: both gradients of `spmm` in one pass over the codes. out = spmm(values, indices, W), grad = ∂/∂out:

d_values[n, j] = grad[n] · W[indices[n, j]], 0 at empty slots (`sddmm`); dW[m] = Σ over slots with index m of
value · grad[row] (`spmm_t`). Taken latent by latent, a row of grad is read once for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force


def _fake(
    grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, backend: str = ""
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(indices.shape), grad.new_empty(W.shape)


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, to_d_values: Tensor, to_dW: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, indices, offsets, W = ctx.saved_tensors
    ops = torch.ops.sae_kernels
    on = {"backend": ctx.backend}
    live = torch.where(values != 0, to_d_values, 0)
    d_grad = d_values = dW = None
    if ctx.needs_input_grad[0]:
        d_grad = ops.spmm(live, indices, offsets, W, **on) + ops.spmm(values, indices, offsets, to_dW, **on)
    if ctx.needs_input_grad[1]:
        d_values = ops.sddmm(grad, to_dW, indices, offsets, values, **on)
    if ctx.needs_input_grad[4]:
        dW = ops.spmm_t(live, indices, offsets, grad, W.shape[0], **on)
    return d_grad, d_values, None, None, dW


OP = Op(
    "spmm_backward",
    '(Tensor grad, Tensor values, Tensor indices, Tensor? offsets, Tensor W, *, str backend="") -> (Tensor, Tensor)',
    _fake,
    _backward,
    _setup_context,
).register()
