"""`topk`: the k largest of each row of materialised scores; ties to the smaller index, NaN above everything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op


def _fake(scores: Tensor, k: int, backend: str = "") -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int32)


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.d_sae = inputs[0].shape[1]


def _backward(ctx: Any, d_values: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    zeros = d_values.new_zeros(d_values.shape[0], ctx.d_sae)
    return zeros.scatter(1, indices.long(), d_values), None


OP = Op(
    "topk", '(Tensor scores, int k, *, str backend="") -> (Tensor, Tensor)', _fake, _backward, _setup_context
).register()
