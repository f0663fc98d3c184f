"""`adam_rows`: Adam in place on the rows of a weight, with unit-norm rows and without the gradient's parallel part.

m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  p ← p − lr_t/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε), as `torch.optim.Adam`.
`remove_parallel`: g ← g − (g·p̂)p̂ first. `unit_norm`: p ← p/‖p‖ last. `lrs[t−1]` is the learning rate of step t.

`rows=None`: every row takes step `step` with its row of `grad` (M, d). With `rows` (R,) unique and `grad` (R, d):
each listed row first replays the steps it missed, `last_step[r]+1 … step−1`, with g = 0, then takes this one, so that
skipping untouched rows changes nothing in the end. With `rows` and no grad: the rows are brought up to `step`
(inclusive) with g = 0. Moments are float32. Source: arXiv 1412.6980.
"""

from __future__ import annotations

from torch import Tensor

from .._kernel import Op


def _fake(
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
    backend: str = "",
) -> None:
    return None


OP = Op(
    "adam_rows",
    "(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor? grad, Tensor? rows, Tensor(d!)? last_step, "
    "Tensor lrs, int step, float beta1, float beta2, float eps, bool unit_norm, bool remove_parallel, *, "
    'str backend="") -> ()',
    _fake,
).register()
