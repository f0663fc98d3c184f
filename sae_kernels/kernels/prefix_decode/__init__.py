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
    """A slot of band p, between prefixes p-1 and p, is in reconstructions p, p+1, …: it sees the sum of their
    gradients. Sorted by band the slots are codes of P·N rows, row p·N + n against row n of that sum: one
    `spmm_backward`."""
    values, indices, offsets, W = ctx.saved_tensors
    to_values, to_W = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    if not ctx.prefixes:
        return torch.zeros_like(values), None, None, torch.zeros_like(W), None
    ops, on = torch.ops.sae_kernels, {"backend": ctx.backend}
    order, by_band = _by_band(indices, offsets, ctx.prefixes, grad.shape[1])
    live = values if ctx.prefixes[-1] == W.shape[0] else torch.where(indices < ctx.prefixes[-1], values, 0)
    codes = live.flatten()[order], indices.flatten()[order], by_band
    seen = _suffix_sums(grad).flatten(0, 1)
    d_values = dW = None
    if to_values and to_W:
        d_values, dW = ops.spmm_backward(seen, *codes, W, **on)
    elif to_values:
        d_values = ops.sddmm(seen, W, codes[1], by_band, codes[0], **on)
    elif to_W:
        dW = ops.spmm_t(*codes, seen, W.shape[0], **on)
    if d_values is not None:
        d_values = torch.zeros_like(d_values).index_copy(0, order, d_values).reshape(values.shape)
    return d_values, None, None, dW, None


def _suffix_sums(grad: Tensor) -> Tensor:
    """out[p] = grad[p] + grad[p+1] + …, added in float32 or wider."""
    sums = [grad[-1].to(torch.promote_types(grad.dtype, torch.float32))]
    for each in reversed(grad.unbind()[:-1]):
        sums.append(sums[-1] + each)
    return torch.stack(sums[::-1]).to(grad.dtype)


def _by_band(indices: Tensor, offsets: Tensor | None, prefixes: list[int], n: int) -> tuple[Tensor, Tensor]:
    """(order (nnz,), offsets (P·n + 1,)): flat slots by band, in a band by row, and where each of these rows begins.
    Slots beyond the last prefix count as the last band's. The host waits for nothing."""
    flat = indices.flatten()
    band = torch.zeros(flat.shape, dtype=torch.int32, device=flat.device)
    for end in prefixes[:-1]:
        band = band + (flat >= end)
    rows = torch.arange(n, device=flat.device)
    if offsets is None:
        rows = rows.repeat_interleave(indices.shape[1])
    else:
        rows = rows.repeat_interleave(offsets.diff(), output_size=flat.shape[0])
    order = torch.sort(band, stable=True).indices
    row_in_band = (band.long() * n + rows)[order]
    firsts = torch.arange(len(prefixes) * n + 1, device=flat.device)
    return order, torch.searchsorted(row_in_band, firsts)


OP = Op(
    "prefix_decode",
    '(Tensor values, Tensor indices, Tensor? offsets, Tensor W, int[] prefixes, *, str backend="") -> Tensor',
    _fake,
    _backward,
    _setup_context,
).register()
