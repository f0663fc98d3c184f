"""Copies of weights that calls with a few tokens read: made when weights come back, never used once they are others."""

from __future__ import annotations

import pytest
import torch
from support.few_tokens import CONTRADICTED, GIVEN_UP, SCREENED, above, expect, select
from support.screening import HARD, exact_scores, normal

from sae_kernels.kernels import _cpu, _few
from sae_kernels.kernels._screen import kept
from sae_kernels.kernels._screen.rounded import Rounded, round_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.usefixtures("copies_of_few")


def test_a_copy_is_made_when_weights_come_back(told: list[int]) -> None:
    x, W, b = normal(1, 64, 1200)
    for _ in range(4):
        expect((x, W, b), 9)
    above((x, W, b), torch.tensor(2.0))
    assert told == [0, SCREENED, SCREENED, SCREENED, SCREENED]
    assert kept.counts == {"made": 1, "used": 3, "stale": 0}


@pytest.mark.parametrize("kind", ["all equal", "nearly equal", "past every bound"])
def test_what_a_copy_cannot_decide_is_computed_without_it(kind: str, told: list[int]) -> None:
    x, W, b = HARD[kind](*normal(7, 96, 4000))
    for _ in range(3):
        expect((x, W, b), 9)
    assert told[0] == 0
    assert all(each & GIVEN_UP for each in told[1:])


def test_a_change_of_all_rows_behind_every_counter_is_seen_at_once() -> None:
    x, W, b = normal(2, 64, 1200)
    for _ in range(3):
        expect((x, W, b), 9)
    for _ in range(3):
        W.numpy()[:] *= 1.5
        expect((x, W, b), 9)
        for _ in range(3):
            expect((x, W, b), 9)
    assert kept.counts["stale"] == 3


def test_a_row_changed_behind_every_counter_is_seen_within_16_calls() -> None:
    """Its score by the copy is small, its new one the largest."""
    x, W, _ = normal(1, 64, 1200)
    for row in (0, 333, 1199):
        W[row] = -x[0]
        for _ in range(3):
            select((x, W, None), 9)
        stale = kept.counts["stale"]
        W.numpy()[row] = x[0]
        seen = [row in select((x, W, None), 9)[1] for _ in range(_few.ROWS_A_LOOK)]
        assert seen[-1]
        assert kept.counts["stale"] == stale + 1


def test_a_changed_row_that_the_copy_would_choose_is_seen_at_once(
    monkeypatch: pytest.MonkeyPatch, told: list[int]
) -> None:
    x, W, b = normal(3, 64, 1200)
    for _ in range(3):
        select((x, W, b), 9)
    monkeypatch.setattr(kept, "_same", lambda *_: True)
    best = int(select((x, W, b), 9)[1][1, 4])
    W.numpy()[best] = 0
    expect((x, W, b), 9)
    assert told[-1] & CONTRADICTED
    assert kept.counts["stale"] == 1
    expect((x, W, b), 9)  # a new copy
    theta = exact_scores(x, W, b)[0].max() - 0.5
    W.numpy()[int((exact_scores(x, W, b)[0]).argmax())] = 0
    above((x, W, b), theta)
    assert told[-1] & CONTRADICTED
    above((x, W, b), theta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 64])
def test_the_look_at_a_copy_sees_every_element(dtype: torch.dtype, d: int) -> None:
    W = torch.randn(40, d).to(dtype)
    copy = W.to(torch.bfloat16, copy=True)

    def differs(row: int, step: int, col: int) -> int:
        a = (_cpu.dtype_code(W), *_cpu.pointers(W), copy.data_ptr())
        return _cpu.tell("screen_differs", *a, row, step, col)

    at = max(0, d - 16)
    assert not any(differs(row, 4, col) for row in range(4) for col in (0, at))
    copy[18, d - 1] += 1
    assert [differs(row, 4, at) for row in range(4)] == [0, 0, 1, 0]
    assert differs(2, 1, at) == 1
    assert differs(19, 1, at) == 0
    assert differs(40, 1, 0) == 0


def test_off_means_no_copy(monkeypatch: pytest.MonkeyPatch, told: list[int]) -> None:
    x, W, b = normal(4, 64, 1200)
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    for _ in range(3):
        expect((x, W, b), 9)
    assert told == [0, 0, 0]
    assert kept.counts == {"made": 0, "used": 0, "stale": 0}


def test_when_it_keeps_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "auto")
    monkeypatch.setattr(_few, "kept", lambda W, rows: round_rows(W, Rounded.empty(*W.shape, W.dtype)))
    W = torch.ones(_few.LEAST_ELEMENTS // 128, 128)
    assert _few.copy_of(W, 32) is not None
    assert _few.copy_of(W[:-1], 32) is None
    assert _few.copy_of(W, W.shape[0] // 20) is None
    assert _few.copy_of(W.bfloat16(), 32) is None
    assert _few.copy_of(W.view(-1, 32), 32) is None
