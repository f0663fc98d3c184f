"""`spmm_t`: codesᵀ @ dense. out[m] = Σ over slots with index m of value · X[row], in float32, empty slots skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force


def _fake(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int, backend: str = "") -> Tensor:
    return X.new_empty(d_sae, X.shape[1])


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, offsets, X = ctx.saved_tensors
    ops = torch.ops.sae_kernels
    d_values = dX = None
    if ctx.needs_input_grad[0]:
        d_values = ops.sddmm(X, grad, indices, offsets, values, backend=ctx.backend)
    if ctx.needs_input_grad[3]:
        dX = ops.spmm(values, indices, offsets, grad, backend=ctx.backend)
    return d_values, None, None, dX, None


OP = Op(
    "spmm_t",
    '(Tensor values, Tensor indices, Tensor? offsets, Tensor X, SymInt d_sae, *, str backend="") -> Tensor',
    _fake,
    _backward,
    _setup_context,
).register()
