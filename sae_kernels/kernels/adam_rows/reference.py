"""`adam_rows`, one step at a time over whole rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import accumulation_dtype, check_indices
from .._reference import always as why_not

__all__ = ["run", "why_not"]


def _unit(p: Tensor) -> Tensor:
    norm = p.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, p / norm, p)


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
    acc = accumulation_dtype(param.dtype)
    if rows is None:
        at = torch.arange(param.shape[0], device=param.device)
        done = torch.full_like(at, step - 1)
    else:
        assert last_step is not None
        check_indices(rows, param.shape[0])
        at = rows.long()
        done = last_step[at]
    p, m, v = param[at].to(acc), exp_avg[at].to(acc), exp_avg_sq[at].to(acc)
    first = int(done.min()) + 1 if at.numel() else step + 1
    for t in range(first, step + 1):
        live = (done < t).unsqueeze(1)
        g = torch.zeros_like(p) if grad is None or t < step else grad.to(acc)
        if remove_parallel:
            unit = _unit(p)
            g = g - (g * unit).sum(1, keepdim=True) * unit
        new_m = beta1 * m + (1 - beta1) * g
        new_v = beta2 * v + (1 - beta2) * g * g
        rate = float(lrs[t - 1]) / (1 - beta1**t)
        new_p = p - rate * new_m / (new_v.sqrt() / (1 - beta2**t) ** 0.5 + eps)
        if unit_norm:
            new_p = _unit(new_p)
        new_p = new_p.to(param.dtype).to(acc)  # a weight is stored after every step, so lazy and dense round alike
        p, m, v = torch.where(live, new_p, p), torch.where(live, new_m, m), torch.where(live, new_v, v)
    param[at], exp_avg[at], exp_avg_sq[at] = p.to(param.dtype), m.to(exp_avg.dtype), v.to(exp_avg_sq.dtype)
    if last_step is not None:
        last_step[at] = step
