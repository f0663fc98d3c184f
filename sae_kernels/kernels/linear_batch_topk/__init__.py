"""`linear_batch_topk`: the `count` largest pre-acts of the whole batch, ragged, never holding the (N, M) tensor.

Arguments: x (N, d), W (M, d), b (M,) or None, count ≤ N·M, relu (negative survivors become empty slots). Ties go to the
smaller row, then the smaller latent. Returns values (count,), indices (count,), offsets (N+1,), latents ascending in
a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel import Op
from ..linear_threshold import backward, setup_context


def _fake(
    x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool, backend: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    offsets = x.new_empty((x.shape[0] + 1,), dtype=torch.int64)
    return x.new_empty((count,)), x.new_empty((count,), dtype=torch.int32), offsets


OP = Op(
    "linear_batch_topk",
    '(Tensor x, Tensor W, Tensor? b, SymInt count, bool relu, *, str backend="") -> (Tensor, Tensor, Tensor)',
    _fake,
    backward,
    setup_context,
).register()
