"""`adam_rows` in C++: a row is read and written once, however many steps it catches up with. csrc/adam_rows.

After each step a 16-bit row is rounded to its dtype, so that catching up equals having stepped, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError, describe
from .. import _cpu


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
    """None, or why the C++ kernel declines."""
    return (
        _cpu.why_not(param, grad)
        or _cpu.why_not(exp_avg, exp_avg_sq)
        or _cpu.in_place_why_not(param, exp_avg, exp_avg_sq)
    )


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
    _cpu.in_place_matrix(param, param.dtype, "param")
    total, d = param.shape
    moments = []
    for moment, what in ((exp_avg, "exp_avg"), (exp_avg_sq, "exp_avg_sq")):
        _cpu.in_place_matrix(moment, torch.float32, what)
        if moment.shape != param.shape:
            raise ShapeError(f"{what} is {describe(moment)}, param {describe(param)}: expected one shape")
        moments += [moment.data_ptr(), moment.stride(0)]
    if rows is not None:
        rows = _cpu.flat(rows, torch.int32, "rows")
    count = total if rows is None else rows.numel()
    gradient = (0, 0, 0)
    if grad is not None:
        grad = _cpu.matrix(grad, param.dtype)
        if grad.shape != (count, d):
            raise ShapeError(f"grad is {describe(grad)}, expected {(count, d)}")
        gradient = (grad.data_ptr(), count, grad.stride(0))
    if last_step is not None:
        _cpu.writable(last_step, (total,), torch.int64, "last_step")
    lrs = _cpu.flat(lrs, torch.float64, "lrs")
    if not 1 <= step <= lrs.numel():
        raise ShapeError(f"lrs is {describe(lrs)}, expected a learning rate for each of steps 1 to {step}")
    if rows is not None and count == 0:  # its null pointer would mean every row
        return
    _cpu.call(
        "adam_rows",
        _cpu.dtype_code(param),
        total,
        d,
        param.data_ptr(),
        param.stride(0),
        *moments,
        *gradient,
        0 if rows is None else rows.data_ptr(),
        count,
        0 if last_step is None else last_step.data_ptr(),
        lrs.data_ptr(),
        lrs.numel(),
        step,
        beta1,
        beta2,
        eps,
        unit_norm,
        remove_parallel,
        limit=total,
    )
    for written in (param, exp_avg, exp_avg_sq, last_step):  # for autograd, which cannot see it
        if written is not None and not written.is_inference():
            torch.autograd.graph.increment_version(written)
