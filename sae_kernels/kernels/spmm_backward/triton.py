"""`spmm_backward` in Triton: a program takes one latent with the whole width of W.

It keeps the latent's row of W and the sum for dW in registers, and gathers the grad rows of the latent's slots,
BLOCK_K at a time, once for both results: half the traffic of the two products apart. The width is cut into D0, the
largest power of two that fits, and D1, the next one that holds the rest, so that 2304 columns cost 2048 + 256 and not
4096. Latents with many slots are split as in `spmm_t`; their dots need no second stage.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ShapeError, describe
from .._triton import by_latent, same_dtype
from .._triton.cast import narrow, wide
from .._triton.hot import Hot, latent_or_piece
from .._triton.inputs import Codes, launches, matrix, next_power_of_2
from .._triton.tuning import Config, pick
from ..sddmm import triton as sddmm
from ..spmm_t import triton as spmm_t

WIDEST = 8192  # columns that fit a program's registers; wider matrices are left to the two products


@triton.jit(do_not_specialize=["nnz", "pieces", "split"])
def _spmm_backward(
    grad, values, rows, order, keys, latent_offsets, W, d_values, dW, partials, nnz: tl.int64, pieces: tl.int64,
    split: tl.int64, d_sae, d, grad_stride, W_stride, BLOCK_K: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    latent, start, end, wanted = latent_or_piece(keys, latent_offsets, program, pieces, nnz, d_sae, split)
    if wanted:
        dtype = dW.dtype.element_ty
        width = tl.where(end > start, d, 0)  # of W read: nothing for a latent without slots
        columns = tl.arange(0, D0)
        W_row = W + latent * W_stride
        weights = tl.load(W_row + columns, mask=columns < width, other=0.0)
        sums = tl.zeros((D0,), tl.float32)
        if D1 > 0:
            columns1 = D0 + tl.arange(0, D1)
            inside1 = columns1 < d
            weights1 = tl.load(W_row + columns1, mask=columns1 < width, other=0.0)
            sums1 = tl.zeros((D1,), tl.float32)
        for first in range(start, end, BLOCK_K):
            slots = first + tl.arange(0, BLOCK_K)
            live = slots < end
            value = wide(tl.load(values + slots, mask=live, other=0.0))
            row = tl.load(rows + slots, mask=live, other=0)
            full = value != 0.0  # an empty slot's row is not read
            grad_row = grad + row.to(tl.int64)[:, None] * grad_stride
            g = wide(tl.load(grad_row + columns[None, :], mask=full[:, None], other=0.0))
            dots = tl.sum(g * wide(weights)[None, :], 1)
            sums += tl.sum(value[:, None] * g, 0)
            if D1 > 0:
                g1 = wide(tl.load(grad_row + columns1[None, :], mask=full[:, None] & inside1[None, :], other=0.0))
                dots += tl.sum(g1 * wide(weights1)[None, :], 1)
                sums1 += tl.sum(value[:, None] * g1, 0)
            dots = tl.where(full, dots, 0.0)
            slot = tl.load(order + slots, mask=live, other=0)
            tl.store(d_values + slot, narrow(dots, d_values.dtype.element_ty), mask=live)
        if program < pieces:
            tl.store(partials + program * d + columns, sums)
            if D1 > 0:
                tl.store(partials + program * d + columns1, sums1, mask=inside1)
        else:
            tl.store(dW + latent * d + columns, narrow(sums, dtype))
            if D1 > 0:
                tl.store(dW + latent * d + columns1, narrow(sums1, dtype), mask=inside1)


def tiles(d: int) -> tuple[int, int]:
    """(D0, D1) for d ≥ 1 columns."""
    first = 1 << (d.bit_length() - 1)
    return first, next_power_of_2(d - first) if d > first else 0


def configs(d: int, itemsize: int) -> list[Config]:
    """The built-in choice first: 16 columns of D0 a thread, and as many slots at once as leave room for two programs
    on a multiprocessor."""
    D0, D1 = tiles(d)
    warps = min(16, max(1, D0 // 512))
    slots = 8 if D1 == 0 and itemsize == 2 else 4
    if D0 < 512:
        slots = min(32, 2048 // D0)
    choices = []
    for block_k, num_warps in ((slots, warps), (slots // 2, warps), (slots, 2 * warps), (2 * slots, 2 * warps)):
        choices.append(Config({"BLOCK_K": block_k, "D0": D0, "D1": D1}, num_warps=min(16, num_warps)))
    return choices


def why_not(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(grad, values, W)


@launches
def run(grad: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> tuple[Tensor, Tensor]:
    """See `sae_kernels.kernels.spmm_backward`."""
    grad, W = matrix(grad, "grad"), matrix(W, "W")
    d_sae, d = W.shape
    if grad.shape[1] != d:
        raise ShapeError(f"grad {describe(grad)}, W {describe(W)}: expected one width")
    if d > WIDEST:
        d_values = sddmm.run(grad, W, indices, offsets, values)
        return d_values, spmm_t.run(values, indices, offsets, grad, d_sae)
    codes = Codes(values, indices, offsets, d_sae, grad.dtype, rows=grad.shape[0])
    dW = torch.empty(d_sae, d, dtype=W.dtype, device=W.device)
    if dW.numel() == 0 or codes.n == 0 or codes.nnz == 0 or codes.values is None:
        return grad.new_zeros(indices.shape), dW.zero_()
    # a slot whose index lies outside the dictionary belongs to no latent: NaN, as in `sddmm`
    d_values = grad.new_full(indices.shape, float("nan"))
    sorted_ = by_latent.sort(indices, offsets, codes)
    in_order = codes.values.flatten().gather(0, sorted_.order)
    hot = Hot(codes.nnz, d, W.device)
    config = pick("spmm_backward", f"{W.itemsize} bytes, d={d}", configs(d, W.itemsize))
    _spmm_backward[(hot.pieces + d_sae,)](
        grad, in_order, sorted_.rows, sorted_.order, sorted_.keys, sorted_.latent_offsets, W, d_values, dW,
        hot.partials, codes.nnz, hot.pieces, hot.split, d_sae, d, grad.stride(0), W.stride(0), **config.meta,
    )  # fmt: skip
    hot.combine(sorted_.keys, sorted_.latent_offsets, dW)
    return d_values, dW
