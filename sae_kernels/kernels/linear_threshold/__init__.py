"""`linear_threshold`: the pre-acts above a threshold, ragged, never holding the (N, M) tensor.

Arguments: x (N, d), W (M, d), b (M,) or None, theta float32, 0-d or (M,). Keeps every z not ≤ θ, so z > θ and NaN.
Returns values (nnz,), indices (nnz,), offsets (N+1,), latents ascending in a row. θ gets no gradient here: an
architecture gives it the straight-through estimate its paper defines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force
from .._linear import linear_backward


def _fake(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor, backend: str = "") -> tuple[Tensor, Tensor, Tensor]:
    nnz = torch.library.get_ctx().new_dynamic_size()
    offsets = x.new_empty((x.shape[0] + 1,), dtype=torch.int64)
    return x.new_empty((nnz,)), x.new_empty((nnz,), dtype=torch.int32), offsets


def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    """Shared with `linear_batch_topk`, whose outputs mean the same."""
    x, W, b = inputs[:3]
    values, indices, offsets = output
    ctx.mark_non_differentiable(indices, offsets)
    ctx.save_for_backward(x, W, values, indices, offsets)
    ctx.b_dtype = None if b is None else b.dtype
    ctx.backend = backend_in_force(keyword_only_inputs)
    ctx.n_inputs = len(inputs)


def backward(ctx: Any, d_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradient of a ragged selection of pre-acts; empty slots pass none."""
    x, W, values, indices, offsets = ctx.saved_tensors
    dz = torch.where(values != 0, d_values, 0)
    needs = ctx.needs_input_grad[:3]
    dx, dW, db = linear_backward(x, W, ctx.b_dtype, [(dz, indices)], offsets, needs, ctx.backend)
    return (dx, dW, db) + (None,) * (ctx.n_inputs - 3)


OP = Op(
    "linear_threshold",
    '(Tensor x, Tensor W, Tensor? b, Tensor theta, *, str backend="") -> (Tensor, Tensor, Tensor)',
    _fake,
    backward,
    setup_context,
).register()
