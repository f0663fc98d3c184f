"""`adam_rows` in the interpreter: catching up bit for bit, where learning rates lie, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.compare import assert_close, assert_same
from torch import Tensor

from bench import cases
from sae_kernels.errors import BackendError, SaeKernelsError
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.adam_rows import triton as adam_rows

ops = torch.ops.sae_kernels
M, D = 6, 5
RATES = torch.tensor([1e-2 * 0.9**t for t in range(12)], dtype=torch.float64)


def state(dtype: torch.dtype = torch.float32, d: int = D) -> list[Tensor]:
    return [cases.normal(M, d, dtype=dtype, seed=1), torch.zeros(M, d), torch.zeros(M, d)]


def step(mine: list[Tensor], t: int, grad: Tensor | None, *rows: Tensor, **change: Any) -> None:
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "unit_norm": True, "remove_parallel": True, **change}
    listed, last = rows if rows else (None, None)
    ops.adam_rows(*mine, grad, listed, last, RATES, t, *options.values(), backend="triton")


def test_catching_up_is_having_stepped_bit_for_bit(dtype: torch.dtype) -> None:
    lazy, every = state(dtype), state(dtype)
    last, odd = torch.zeros(M, dtype=torch.int64), torch.tensor([5, 1, 3], dtype=torch.int32)
    for t in range(1, 5):
        grad = torch.zeros(M, D, dtype=dtype)
        if t in (1, 4):
            grad[odd.long()] = cases.normal(3, D, dtype=dtype, seed=t)
            step(lazy, t, grad[odd.long()], odd, last)
        step(every, t, grad)
    assert last.tolist() == [0, 4, 0, 4, 0, 4]
    step(lazy, 4, None, torch.arange(M, dtype=torch.int32), last)
    for mine, other in zip(lazy, every, strict=True):
        assert_same(mine, other, signed_zeros=False)


def test_every_configuration() -> None:
    before = state(d=300)
    grad = cases.normal(M, 300, seed=3)
    want = [each.clone() for each in before]
    ops.adam_rows(*want, grad, None, None, RATES, 2, 0.9, 0.999, 1e-8, True, True, backend="reference")
    for config in adam_rows.configs(300):
        found = [each.clone() for each in before]
        with tuning.forced("adam_rows", config):
            step(found, 2, grad)
        for mine, other in zip(found, want, strict=True):
            assert_close(mine, other.double())


def test_a_gradient_of_another_dtype() -> None:
    grad = cases.normal(M, D, dtype=torch.bfloat16, seed=3)
    narrow, wide = state(), state()
    step(narrow, 1, grad)
    step(wide, 1, grad.float())
    assert_same(narrow[0], wide[0])


def test_without_epsilon_what_lies_beyond_a_row_does_not_spoil_its_norm() -> None:
    mine = state()
    step(mine, 1, torch.ones(M, D), eps=0.0)
    assert_close(mine[0].norm(dim=1), torch.ones(M))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.3), (0.0, 0.0)], ids=str)
def test_bias_corrections_of_any_step(betas: tuple[float, float]) -> None:
    for t in (1, 2, 77, 1024, 1025, 50_000, 10**9):
        table = adam_rows.corrections(*betas, t, torch.device("cpu"))
        assert table.shape[1] <= 65_536
        first, second = table[:, min(t, table.shape[1]) - 1].tolist()
        assert first == pytest.approx(1 - betas[0] ** t, rel=1e-15)
        assert second == pytest.approx(1 / math.sqrt(1 - betas[1] ** t), rel=1e-15)


def test_a_row_twice_or_a_step_ahead_is_refused_before_anything_is_written() -> None:
    for rows, last in (([1, 1], 0), ([0, 3], 9), ([0, 3], -1), ([0, 6], 0), ([-1, 2], 0)):
        mine = state()
        steps = torch.full((M,), last)
        with pytest.raises(SaeKernelsError, match=r"rows|last_step"):
            step(mine, 2, torch.ones(2, D), torch.tensor(rows, dtype=torch.int32), steps)
        assert_same(mine[0], state()[0])
        assert (steps == last).all()


def test_rows_outside_are_left_alone_where_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.interpreting", lambda: False)
    mine, last = state(), torch.zeros(M, dtype=torch.int64)
    step(mine, 1, torch.ones(3, D), torch.tensor([-1, 2, 6], dtype=torch.int32), last)
    assert last.tolist() == [0, 0, 1, 0, 0, 0]
    assert (mine[0] != state()[0]).any(1).tolist() == [False, False, True, False, False, False]


def test_what_it_declines() -> None:
    mine = state()
    spread = [mine[0].mT.contiguous().mT, *mine[1:]]
    with pytest.raises(BackendError, match="needs inner stride 1"):
        step(spread, 1, torch.ones(M, D))
    with pytest.raises(BackendError, match="takes up to 16384"):
        step([torch.ones(1, 16_385)] * 3, 1, torch.ones(1, 16_385))
