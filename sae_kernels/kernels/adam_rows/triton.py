"""`adam_rows` in Triton: a program takes a row, which stays in registers through all the steps it catches up with.

Rounded to the parameter's dtype after every step, and with step sizes that depend on nothing but the step, catching up
gives the bits that stepping would have given. The bias corrections of all steps lie in a table, made once in float64.
"""

# pyright: reportInvalidTypeForm=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import IndexRangeError, ShapeError, describe
from .._triton import DTYPES
from .._triton.cast import narrow, wide
from .._triton.in_place import in_place_why_not, written
from .._triton.inputs import checking, flat, launches, matrix, next_power_of_2
from .._triton.tuning import Config, pick

WIDEST = 16384  # columns of a row that registers hold


@triton.jit
def _step(
    p, m, v, g, rate, scale, beta1, rest1, beta2, rest2, eps, dtype: tl.constexpr,
    GRAD: tl.constexpr, UNIT: tl.constexpr, PARALLEL: tl.constexpr,
):  # fmt: skip
    """One step of a row: the new p, m, v. Without GRAD g is 0 and not looked at."""
    m = m * beta1
    v = v * beta2
    if GRAD:
        if PARALLEL:
            square = tl.sum(p * p, 0)
            g -= tl.sum(g * p, 0) / tl.where(square > 0, square, 1.0) * p
        m += rest1 * g
        v += rest2 * g * g
    p -= rate * (m / (tl.sqrt(v) * scale + eps))
    if UNIT:
        square = tl.sum(p * p, 0)
        p *= 1 / tl.sqrt(tl.where(square > 0, square, 1.0))
    return wide(narrow(p, dtype)), m, v


@triton.jit
def _rate_and_scale(lrs, corrections, t, saturated: tl.int64):
    """lr_t/(1 − β₁ᵗ) and 1/√(1 − β₂ᵗ) of step t, rounded to float32 last."""
    at = tl.minimum(t, saturated) - 1
    rate = tl.load(lrs + t - 1) / tl.load(corrections + at)
    scale = tl.load(corrections + saturated + at)
    return rate.to(tl.float32), scale.to(tl.float32)


@triton.jit(do_not_specialize=["step", "saturated"])
def _adam_rows(
    param, exp_avg, exp_avg_sq, grad, rows, last_step, lrs, corrections, saturated: tl.int64, step: tl.int64,
    rate, scale, beta1, rest1, beta2, rest2, eps, total, d, p_stride, m_stride, v_stride, g_stride,
    GRAD: tl.constexpr, ROWS: tl.constexpr, LAZY: tl.constexpr, MARK: tl.constexpr, LOOK_UP: tl.constexpr,
    UNIT: tl.constexpr, PARALLEL: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    listed = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + listed).to(tl.int64) if ROWS else listed
    if (row < 0) | (row >= total):
        return
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    p_at = param + row * p_stride + columns
    m_at = exp_avg + row * m_stride + columns
    v_at = exp_avg_sq + row * v_stride + columns
    p = wide(tl.load(p_at, mask=inside, other=0.0))
    m = tl.load(m_at, mask=inside, other=0.0)
    v = tl.load(v_at, mask=inside, other=1.0)  # beyond the row p stays 0, even where eps is 0
    g = wide(tl.load(grad + listed * g_stride + columns, mask=inside, other=0.0)) if GRAD else 0.0
    dtype: tl.constexpr = param.dtype.element_ty
    last = step - 1
    if LAZY:
        last = tl.maximum(tl.load(last_step + row), 0)
        silent = step - 1 if GRAD else step
        for t in range(last + 1, silent + 1):
            rate_t, scale_t = _rate_and_scale(lrs, corrections, t, saturated)
            p, m, v = _step(
                p, m, v, g, rate_t, scale_t, beta1, rest1, beta2, rest2, eps, dtype, False, UNIT, PARALLEL
            )  # fmt: skip
    if GRAD or not LAZY:
        if LOOK_UP:
            rate, scale = _rate_and_scale(lrs, corrections, step, saturated)
        if last < step:
            p, m, v = _step(
                p, m, v, g, rate, scale, beta1, rest1, beta2, rest2, eps, dtype, GRAD, UNIT, PARALLEL
            )  # fmt: skip
    if LAZY:
        tl.debug_barrier()  # every warp has read last_step before one of them marks it: a late one would skip its steps
    tl.store(p_at, narrow(p, dtype), mask=inside)
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)
    if MARK:
        tl.store(last_step + row, step)


def configs(d: int) -> list[Config]:
    """The built-in choice first: 16 elements of each matrix a thread."""
    block = next_power_of_2(d)
    most = max(1, min(32, block // 128))
    counts = (min(most, max(1, block // 512)), min(most, max(1, block // 256)), min(most, max(1, block // 1024)))
    return list(dict.fromkeys(Config({"BLOCK_D": max(16, block)}, num_warps=warps) for warps in counts))


def size_class(d: int, itemsize: int) -> str:
    """What the best configuration depends on."""
    return f"{itemsize} bytes, d<={next_power_of_2(d)}"


@functools.lru_cache(maxsize=16)
def _table(beta1: float, beta2: float, steps: int, device: torch.device) -> Tensor:
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return torch.stack([1 - beta1**t, (1 - beta2**t) ** -0.5]).to(device)


def corrections(beta1: float, beta2: float, step: int, device: torch.device) -> Tensor:
    """Float64 (2, steps): 1 − β₁ᵗ and 1/√(1 − β₂ᵗ) of steps t = 1 …; steps beyond the table have its last column.

    It is kept, and made anew, twice as long, when `step` outgrows it, until βᵗ is nothing beside 1.
    """
    beta = max(beta1, beta2)
    steps = max(1024, next_power_of_2(step))
    if beta < 1:
        steps = min(steps, 1 + int(38 / -math.log(beta)) if beta > 0 else 1)  # βᵗ < 2⁻⁵⁴
    return _table(beta1, beta2, steps, device)


def _check_rows(rows: Tensor, last_step: Tensor | None, total: int, step: int) -> None:
    """What C++ refuses. Reads the rows back: only where indices are checked."""
    seen: set[int] = set()
    for i, row in enumerate(rows.tolist()):
        if not 0 <= row < total:
            raise IndexRangeError(f"rows[{i}] = {row}, expected 0 <= row < {total}")
        if row in seen:
            raise IndexRangeError(f"rows[{i}] = {row} is listed twice")
        seen.add(row)
        last = step if last_step is None else int(last_step[row])
        if not 0 <= last <= step:
            raise IndexRangeError(f"last_step[{row}] = {last}, expected 0 <= last_step <= step")


def why_not(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor | None,
    rows: Tensor | None,
    last_step: Tensor | None,
    lrs: Tensor,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
    remove_parallel: bool,
) -> str | None:
    """None, or why the Triton kernel declines."""
    for tensor in (param, grad):
        if tensor is not None and tensor.dtype not in DTYPES:
            return f"dtype is {str(tensor.dtype).removeprefix('torch.')} (needs float32, bfloat16 or float16)"
    if param.dim() == 2 and param.shape[1] > WIDEST:
        return f"rows of {param.shape[1]} elements (takes up to {WIDEST})"
    return in_place_why_not(param, exp_avg, exp_avg_sq)


@launches
def run(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor | None,
    rows: Tensor | None,
    last_step: Tensor | None,
    lrs: Tensor,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
    remove_parallel: bool,
) -> None:
    """See `sae_kernels.kernels.adam_rows`."""
    total, d = param.shape
    param = param.detach()
    exp_avg = written(exp_avg, "exp_avg", (total, d), torch.float32)
    exp_avg_sq = written(exp_avg_sq, "exp_avg_sq", (total, d), torch.float32)
    if rows is not None:
        rows = flat(rows, "rows", torch.int32)
    count = total if rows is None else rows.numel()
    if grad is not None:
        grad = matrix(grad, "grad")
        if grad.shape != (count, d):
            raise ShapeError(f"grad is {describe(grad)}, expected {(count, d)}")
    if last_step is not None:
        last_step = written(last_step, "last_step", (total,), torch.int64)
        if not last_step.is_contiguous():
            raise ShapeError(f"last_step has strides {last_step.stride()}, expected contiguous {(total,)}")
    lrs = flat(lrs, "lrs", torch.float64)
    if not 1 <= step <= lrs.numel():
        raise ShapeError(f"lrs is {describe(lrs)}, expected a learning rate for each of steps 1 to {step}")
    if rows is not None and checking():
        _check_rows(rows, last_step, total, step)
    if count == 0 or d == 0:
        return
    device = param.device
    lazy = rows is not None and last_step is not None
    on_host = lrs.device.type == "cpu" and not lazy
    rate = scale = 1.0
    table = corrections(beta1, beta2, step, torch.device("cpu") if on_host else device)
    saturated = table.shape[1]
    if on_host:  # the one step size as an argument: nothing to copy
        one, other = table[:, min(step, saturated) - 1]
        rate, scale = (lrs[step - 1] / one).item(), other.item()
    else:
        lrs = lrs[:step].to(device, non_blocking=True)
    config = pick("adam_rows", size_class(d, param.itemsize), configs(d))
    _adam_rows[(count,)](
        param, exp_avg, exp_avg_sq, grad, rows, last_step, None if on_host else lrs, None if on_host else table,
        saturated, step, rate, scale, beta1, 1 - beta1, beta2, 1 - beta2, eps, total, d,
        param.stride(0), exp_avg.stride(0), exp_avg_sq.stride(0), 0 if grad is None else grad.stride(0),
        GRAD=grad is not None, ROWS=rows is not None, LAZY=lazy, MARK=last_step is not None, LOOK_UP=not on_host,
        UNIT=unit_norm, PARALLEL=remove_parallel, **config.meta,
    )  # fmt: skip
