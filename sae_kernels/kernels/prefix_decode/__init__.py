"""`prefix_decode`: reconstructions of several nested prefixes of the latents in one pass.

out[p, n] = Σ_j values[n, j] · W[indices[n, j]] over slots with index < prefixes[p]; prefixes rise strictly, the last
is ≤ d_sae.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force


def _fake(
    values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int], backend: str = ""
) -> Tensor:
    n = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return W.new_empty(len(prefixes), n, W.shape[1])


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.prefixes = inputs[4]
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """A slot between prefixes p-1 and p is in reconstructions p, p+1, …: it sees the sum of their gradients."""
    values, indices, offsets, W = ctx.saved_tensors
    ops = torch.ops.sae_kernels
    seen = grad.flip(0).cumsum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).flip(0).to(grad.dtype)
    d_values = torch.zeros_like(values)
    dW = torch.zeros_like(W)
    start = 0
    for p, end in enumerate(ctx.prefixes):
        band = torch.where((indices >= start) & (indices < end), values, 0)
        if ctx.needs_input_grad[0]:
            d_values = d_values + ops.sddmm(seen[p], W, indices, offsets, band, backend=ctx.backend)
        if ctx.needs_input_grad[3]:
            dW = dW + ops.spmm_t(band, indices, offsets, seen[p], W.shape[0], backend=ctx.backend)
        start = end
    return d_values, None, None, dW, None


OP = Op(
    "prefix_decode",
    '(Tensor values, Tensor indices, Tensor? offsets, Tensor W, int[] prefixes, *, str backend="") -> Tensor',
    _fake,
    _backward,
    _setup_context,
).register()
