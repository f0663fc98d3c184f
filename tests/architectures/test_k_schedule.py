"""k annealing: linear from its start to k, a function of the step alone, and k outside training."""

from __future__ import annotations

import pytest

import sae_kernels as sk
from bench import cases

SIZES = {"d_in": 8, "d_sae": 20, "k": 3}
KINDS = ["topk", "batch_topk", "matryoshka", "transcoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_k_of_each_step(kind: str) -> None:
    coder = sk.create(kind, **SIZES, k_anneal_from=13, k_anneal_steps=5)
    x = cases.normal(6, 8)
    assert coder.encode(x).l0().sum() <= 3 * 6, "nobody called on_step: k"
    found = []
    for step in range(7):
        coder.on_step(step, 100)
        codes = coder.loss(x).codes
        found.append(codes.values.numel() / 6)
        assert coder.encode(x).values.numel() == codes.values.numel()
    assert found == [13, 11, 9, 7, 5, 3, 3]
    coder.on_step(2, 100)  # as if resumed: no memory of the steps before
    assert coder.loss(x).codes.values.numel() == 9 * 6
    coder.eval()
    assert coder.loss(x).codes.values.numel() == 3 * 6


def test_it_rounds_and_may_rise() -> None:
    coder = sk.create("topk", **{**SIZES, "k": 4}, k_anneal_from=1, k_anneal_steps=4)
    assert [coder.config.k_at(step) for step in range(5)] == [1, 2, 2, 3, 4]  # pyright: ignore[reportAttributeAccessIssue]


def test_multi_topk_keeps_four_times_the_k_of_the_step() -> None:
    coder = sk.create("topk", **SIZES, k_anneal_from=5, k_anneal_steps=2, multi_topk=True)
    widths = []
    for step in range(3):
        coder.on_step(step, 3)
        widths.append([each.k for each in coder.selections()])  # pyright: ignore[reportCallIssue]
    assert widths == [[5, 20], [4, 16], [3, 12]]


def test_without_annealing_k_stays() -> None:
    coder = sk.create("topk", **SIZES)
    coder.on_step(0, 10)
    assert coder.encode(cases.normal(6, 8)).values.shape == (6, 3)
