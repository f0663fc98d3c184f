"""The schedule, denormals, and random states."""

from __future__ import annotations

import json
import random

import numpy
import pytest
import torch

from sae_kernels.train import random_state
from sae_kernels.train.denormals import flushed
from sae_kernels.train.schedule import lr_factor


def test_the_rate_rises_stays_and_falls() -> None:
    factors = [lr_factor(step, 10, 2, 0.4) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [lr_factor(step, 3, 0, 0.0) for step in range(3)] == [1, 1, 1]
    for schedule in ("linear", "cosine"):
        assert all(0 < lr_factor(step, 5, 100, 1.0, schedule) <= 1 for step in range(5))
    cosine = [lr_factor(step, 10, 2, 0.4, "cosine") for step in range(10)]
    assert cosine == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert [lr_factor(step, 3, 2, 0.9, "constant") for step in range(3)] == [0.5, 1, 1]


def denormals(n_threads: int) -> list[bool]:
    """Whether a denormal survives a multiplication, at the start of each thread's share."""
    tiny = torch.full((400_000,), 1000, dtype=torch.int32).view(torch.float32)
    products = (tiny * 1.0).view(torch.int32)
    return [bool(part[0] != 0) for part in products.chunk(n_threads)]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_every_thread_flushes_and_stops_flushing(n_threads: int, threads) -> None:
    with threads(n_threads):
        assert denormals(n_threads) == [True] * n_threads
        with flushed(n_threads):
            assert denormals(n_threads) == [False] * n_threads
        assert denormals(n_threads) == [True] * n_threads


def draw() -> list[float]:
    return [float(torch.rand(())), float(numpy.random.rand()), random.random()]


def test_random_states_survive_json() -> None:
    with random_state.Own(3):
        draw()
        state = json.loads(json.dumps(random_state.capture()))
        expected = draw()
        random_state.restore(state)
        assert draw() == expected
    own = random_state.Own(3)
    with own:
        draw()
    draw()
    with own:
        assert draw() == expected
