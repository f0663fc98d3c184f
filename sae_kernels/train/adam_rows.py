"""Adam by the kernel `adam_rows`: unit-norm rows and the gradient's parallel part in the same pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import OPS

_WIDEST = 4096  # of the rows that tensors without rows of their own are cut into


class AdamRows(torch.optim.Optimizer):
    """`torch.optim.Adam` (arXiv 1412.6980, without weight decay or amsgrad), one kernel call a parameter.

    For parameters in `unit_norm`, (rows, …), each row r̂ = r / ‖r‖ first takes the part along itself out of its
    gradient, g ← g − (g·r̂)r̂, and is divided by its norm after the step: what `SparseCoder.before_step` and `after_step`
    do for `unit_norm_rows`, which are told so with `unit_norm_in_optimizer = True`.

    State of a parameter, as Adam's: `exp_avg`, `exp_avg_sq` (its shape; float32, of float64 weights float64), `step`
    (int64, on the CPU). Every row is visited in every step: rows whose gradient is 0 still move by their momentum, and
    the next `encode` must see that.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        unit_norm: Iterable[nn.Parameter] = (),
    ) -> None:
        rows = {id(parameter) for parameter in unit_norm}
        params = list(params)
        groups: list[dict[str, Any]] = [
            {"params": [each for each in params if (id(each) in rows) == unit], "unit_norm": unit}
            for unit in (False, True)
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "betas": betas, "eps": eps})
        self._rates = torch.zeros(1024, dtype=torch.float64)  # rate of step t at t − 1, as the kernel takes them

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.contiguous_format)
            state["step"] = torch.zeros((), dtype=torch.int64)
        if state["step"].device.type != "cpu":  # put there by who restored it
            state["step"] = state["step"].cpu()
        state["step"] += 1
        t, unit = int(state["step"]), group["unit_norm"]
        if t > len(self._rates):
            self._rates = torch.cat([self._rates, torch.zeros(max(t - len(self._rates), len(self._rates)))])
        self._rates[t - 1] = group["lr"]
        parts = [_rows(each, unit) for each in (parameter, state["exp_avg"], state["exp_avg_sq"], grad)]
        OPS["adam_rows"](*parts, None, None, self._rates[:t], t, *group["betas"], group["eps"], unit, unit)


def _rows(tensor: Tensor, unit_norm: bool) -> Tensor:
    """A tensor as a matrix, sharing memory: its rows where they mean something, else rows of a size that suits."""
    if unit_norm:
        return tensor if tensor.dim() == 2 else tensor.view(len(tensor), -1)
    if tensor.dim() == 2 and tensor.shape[1] <= _WIDEST:
        return tensor
    n = tensor.numel()
    return tensor.view(-1, n if n <= _WIDEST else math.gcd(n, _WIDEST))
