"""The gradient every fused encode shares: codes of pre-act gradients against x and W."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _cpu


def linear_backward(
    x: Tensor,
    W: Tensor,
    b_dtype: torch.dtype | None,
    pairs: Sequence[tuple[Tensor, Tensor]],
    offsets: Tensor | None,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dW, db) of z = x Wᵀ + b, given dz at the slots of one or more selections; empty slots already zeroed.

    dx = dz W (`spmm`), dW = dzᵀ x (`spmm_t`), db = Σ_n dz (`spmm_t` with a column of ones).
    """
    ops = torch.ops.sae_kernels
    if not pairs:
        return None, None, None
    dz = torch.cat([grad for grad, _ in pairs], dim=-1) if len(pairs) > 1 else pairs[0][0]
    indices = torch.cat([index for _, index in pairs], dim=-1) if len(pairs) > 1 else pairs[0][1]
    d_sae = W.shape[0]
    dx = ops.spmm(dz, indices, offsets, W, backend=backend) if needs[0] else None
    dW = _stored_like(W, ops.spmm_t(dz, indices, offsets, x, d_sae, backend=backend)) if needs[1] else None
    db = None
    if b_dtype is not None and needs[2]:
        ones = x.new_ones(x.shape[0], 1)
        db = ops.spmm_t(dz, indices, offsets, ones, d_sae, backend=backend).squeeze(1).to(b_dtype)
    return dx, dW, db


def _stored_like(W: Tensor, dW: Tensor) -> Tensor:
    """dW by columns where W is, as SAELens stores it: autograd would copy it so, several times slower."""
    by_columns = W.stride(0) == 1 and W.stride(1) > 1
    traced = type(dW) is not Tensor or dW.requires_grad
    if not by_columns or traced or _cpu.why_not(dW) is not None:
        return dW
    turned = _cpu.empty(dW.shape[1], dW.shape[0], dtype=dW.dtype)
    dW = _cpu.matrix(dW)
    _cpu.call("columns", _cpu.dtype_code(dW), *_cpu.pointers(dW), turned.data_ptr())
    return turned.mT
