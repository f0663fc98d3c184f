"""`spmm`: codes @ dense. out[n] = Σ_j values[n, j] · W[indices[n, j]], in float32, empty slots skipped.

The three products are closed under differentiation: the gradient of each is made of the other two, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force


def _fake(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, backend: str = "") -> Tensor:
    n = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return W.new_empty(n, W.shape[1])


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, offsets, W = ctx.saved_tensors
    ops = torch.ops.sae_kernels
    if ctx.needs_input_grad[0] and ctx.needs_input_grad[3]:
        d_values, dW = ops.spmm_backward(grad, values, indices, offsets, W, backend=ctx.backend)
        return d_values, None, None, dW
    d_values = dW = None
    if ctx.needs_input_grad[0]:
        d_values = ops.sddmm(grad, W, indices, offsets, values, backend=ctx.backend)
    if ctx.needs_input_grad[3]:
        dW = ops.spmm_t(values, indices, offsets, grad, W.shape[0], backend=ctx.backend)
    return d_values, None, None, dW


OP = Op(
    "spmm",
    '(Tensor values, Tensor indices, Tensor? offsets, Tensor W, *, str backend="") -> Tensor',
    _fake,
    _backward,
    _setup_context,
).register()
