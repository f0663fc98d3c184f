"""`sddmm`: rows of A · rows of B at the codes' positions. out[n, j] = A[n] · B[indices[n, j]], in float32.

Where `gate` is given and 0 the slot is empty: the result is 0 and neither row is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._kernel import Op, backend_in_force


def _fake(
    A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None, backend: str = ""
) -> Tensor:
    return A.new_empty(indices.shape)


def _setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.backend = backend_in_force(keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    A, B, indices, offsets, gate = ctx.saved_tensors
    ops = torch.ops.sae_kernels
    if gate is not None:
        grad = torch.where(gate != 0, grad, 0)
    dA = dB = None
    if ctx.needs_input_grad[0]:
        dA = ops.spmm(grad, indices, offsets, B, backend=ctx.backend)
    if ctx.needs_input_grad[1]:
        dB = ops.spmm_t(grad, indices, offsets, A, B.shape[0], backend=ctx.backend)
    return dA, dB, None, None, None


OP = Op(
    "sddmm",
    '(Tensor A, Tensor B, Tensor indices, Tensor? offsets, Tensor? gate, *, str backend="") -> Tensor',
    _fake,
    _backward,
    _setup_context,
).register()
