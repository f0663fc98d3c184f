"""`linear_topk`: x Wᵀ + b and its per-row selections, several in one pass, never holding the (N, M) tensor.

Arguments: x (N, d), W (M, d), b (M,) or None; for selection i, `ks[i]` latents a row, `relus[i]` whether negative ones
become 0 (an empty slot), `among[i]` a bool (M,) mask of the latents to choose from, or an empty tensor for all of them.
Returns [values_0, indices_0, values_1, indices_1, …]. A mask with fewer than k latents leaves the rest of the slots
empty (value 0, index 0). Selection is made on scores accumulated in float32 and not rounded to the input's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force
from .._linear import linear_backward


def _fake(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: list[Tensor], backend: str = ""
) -> list[Tensor]:
    out = []
    for k in ks:
        out += [x.new_empty(x.shape[0], k), x.new_empty((x.shape[0], k), dtype=torch.int32)]
    return out


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: list[Tensor]) -> None:
    x, W, b, _, _, among = inputs
    ctx.mark_non_differentiable(*output[1::2])
    ctx.save_for_backward(x, W, *output)
    ctx.b_dtype = None if b is None else b.dtype
    ctx.n_among = len(among)  # the gradient must have the structure of the inputs
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, W, *output = ctx.saved_tensors
    pairs = []  # (gradient of the pre-acts, indices) of each selection that received a gradient
    for values, indices, grad in zip(output[::2], output[1::2], grads[::2], strict=True):
        if grad is not None:
            pairs.append((torch.where(values != 0, grad, 0), indices))
    dx, dW, db = linear_backward(x, W, ctx.b_dtype, pairs, None, ctx.needs_input_grad[:3], ctx.backend)
    return dx, dW, db, None, None, [None] * ctx.n_among


OP = Op(
    "linear_topk",
    '(Tensor x, Tensor W, Tensor? b, int[] ks, bool[] relus, Tensor[] among, *, str backend="") -> Tensor[]',
    _fake,
    _backward,
    _setup_context,
).register()
