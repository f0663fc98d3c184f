"""`adam_rows` against torch.optim.Adam in float64, and its lazy form against having stepped every row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import assert_close, assert_same
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
M, D = 23, 17
BETAS, EPS = (0.9, 0.999), 1e-8
RATES = [1e-2 * 0.9**t for t in range(12)]
BIG = pytest.mark.big
EXTRAS = pytest.mark.parametrize(
    ("unit_norm", "remove_parallel"),
    [
        pytest.param(False, False, id="plain"),
        pytest.param(True, False, id="unit-norm", marks=BIG),
        pytest.param(False, True, id="parallel-removed", marks=BIG),
        pytest.param(True, True, id="unit-norm-parallel-removed"),
    ],
)


class State:
    """A parameter with its moments."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.param = cases.normal(M, D, dtype=dtype, seed=1)
        self.exp_avg, self.exp_avg_sq = torch.zeros(M, D), torch.zeros(M, D)
        self.last_step = torch.zeros(M, dtype=torch.int64)

    def step(self, t: int, grad: Tensor | None, rows: Tensor | None = None, **options: Any) -> None:
        last = None if rows is None else self.last_step
        state = (self.param, self.exp_avg, self.exp_avg_sq)
        extras = (options.get("unit_norm", False), options.get("remove_parallel", False))
        rates = torch.tensor(RATES, dtype=torch.float64)
        ops.adam_rows(*state, grad, rows, last, rates, t, *BETAS, EPS, *extras, backend=options["backend"])


def gradient(t: int, dtype: torch.dtype) -> Tensor:
    return cases.normal(M, D, dtype=dtype, seed=100 + t, scale=0.1)


def truth(start: Tensor, grads: list[Tensor], unit_norm: bool, remove_parallel: bool) -> Tensor:
    """torch.optim.Adam in float64, with the two extras written out."""
    p = start.double().clone().requires_grad_()
    optimiser = torch.optim.Adam([p], lr=1.0, betas=BETAS, eps=EPS, foreach=False)
    for t, grad in enumerate(grads):
        optimiser.param_groups[0]["lr"] = RATES[t]
        with torch.no_grad():
            g = grad.double().clone()
            if remove_parallel:
                direction = torch.nn.functional.normalize(p, dim=1)
                g -= (g * direction).sum(1, keepdim=True) * direction
            p.grad = g
            optimiser.step()
            if unit_norm:
                p /= p.norm(dim=1, keepdim=True)
    return p.detach()


@EXTRAS
def test_dense_form_is_torchs_adam(backend: str, dtype: torch.dtype, unit_norm: bool, remove_parallel: bool) -> None:
    state = State(dtype)
    start = state.param.clone()
    grads = [gradient(t, dtype) for t in range(8)]
    for t, grad in enumerate(grads, start=1):
        state.step(t, grad, unit_norm=unit_norm, remove_parallel=remove_parallel, backend=backend)
    # eight roundings of the parameter, one a step; Adam's g/√v amplifies what float32 loses of a small g
    assert_close(state.param, truth(start, grads, unit_norm, remove_parallel), factor=5)


@EXTRAS
def test_skipped_rows_catch_up_exactly(backend: str, unit_norm: bool, remove_parallel: bool) -> None:
    """Only touched rows step; in the end all are where dense steps with zeros would have put them."""
    options = {"unit_norm": unit_norm, "remove_parallel": remove_parallel, "backend": backend}
    lazy, every = State(torch.float32), State(torch.float32)
    for t in range(1, 9):
        rows = cases.permutation(M, seed=t)[: 2 * t]
        grad = torch.zeros(M, D)
        grad[rows.long()] = gradient(t, torch.float32)[rows.long()]
        lazy.step(t, grad[rows.long()], rows, **options)
        every.step(t, grad, **options)
        assert (lazy.last_step[rows.long()] == t).all()
    lazy.step(8, None, torch.arange(M, dtype=torch.int32), **options)
    assert (lazy.last_step == 8).all()
    assert_close(lazy.param, every.param.double())
    assert_close(lazy.exp_avg, every.exp_avg.double())
    assert_close(lazy.exp_avg_sq, every.exp_avg_sq.double())


def test_rows_not_listed_stay_as_they_are(backend: str, dtype: torch.dtype) -> None:
    state = State(dtype)
    before = state.param.clone()
    rows = torch.tensor([3, 22, 0], dtype=torch.int32)
    state.step(1, gradient(1, dtype)[:3], rows, backend=backend)
    others = [r for r in range(M) if r not in rows.tolist()]
    assert_same(state.param[others], before[others])
    assert (state.param[rows.long()] != before[rows.long()]).any(1).all()
    assert state.last_step.nonzero().flatten().tolist() == [0, 3, 22]
    assert (state.exp_avg[others] == 0).all()


def test_no_rows_is_no_work(backend: str) -> None:
    state = State(torch.float32)
    before = state.param.clone()
    state.step(3, torch.zeros(0, D), torch.zeros(0, dtype=torch.int32), backend=backend)
    assert_same(state.param, before)


def test_rows_of_norm_zero_are_left_alone(backend: str) -> None:
    state = State(torch.float32)
    state.param[4] = 0
    state.step(1, torch.zeros(M, D), unit_norm=True, remove_parallel=True, backend=backend)
    assert (state.param[4] == 0).all()
    assert_close(state.param[5].norm().reshape(1), torch.ones(1))


def test_a_padded_parameter_is_updated_in_place(backend: str) -> None:
    wide = torch.full((M, D + 5), 7.0)
    state, plain = State(torch.float32), State(torch.float32)
    wide[:, :D] = state.param
    state.param = wide[:, :D]
    for each in (state, plain):
        each.step(1, gradient(1, torch.float32), backend=backend)
    assert_same(state.param.contiguous(), plain.param)
    assert (wide[:, D:] == 7).all()
