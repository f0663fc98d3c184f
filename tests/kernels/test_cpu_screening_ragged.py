"""Screening under the ragged selections: exactly those of the exactly computed scores."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_same
from support.screening import HARD, Problem, cut_small, exact_scores, normal
from torch import Tensor

from sae_kernels.kernels.linear_batch_topk import cpu as linear_batch_topk
from sae_kernels.kernels.linear_batch_topk import screened as screened_batch
from sae_kernels.kernels.linear_threshold import cpu as linear_threshold
from sae_kernels.kernels.linear_threshold import screened
from sae_kernels.kernels.linear_threshold.pieces import assemble
from sae_kernels.kernels.topk import reference as topk


@pytest.fixture(autouse=True)
def _screening(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On, in small chunks, and never given up."""
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "on")
    monkeypatch.setattr(screened, "SCREENED_A_COMPUTED", 1)
    monkeypatch.setattr(screened_batch, "SCREENED_A_COMPUTED", 1)
    cut_small(monkeypatch)


def above(problem: Problem, theta: Tensor) -> None:
    """What is kept is exactly what is not <= theta."""
    x, n = problem[0], problem[0].shape[0]
    pieces, done = screened.pieces(*problem, theta)
    assert done == n
    values, indices, offsets = assemble(n, pieces, x.dtype)
    z = exact_scores(*problem)
    stays = ~(z <= theta)
    assert torch.equal(offsets.diff(), stays.sum(1))
    assert torch.equal(indices, stays.nonzero()[:, 1].int())
    assert_same(values, z[stays].to(x.dtype), signed_zeros=False)


def best_of_batch(problem: Problem, count: int) -> None:
    """What is kept are exactly the `count` best, ties to the smaller row, then latent."""
    found = screened_batch.run(*problem, count, False)
    assert found is not None
    values, indices, offsets = found
    z = exact_scores(*problem)
    _, flat = topk.run(z.flatten()[None], count)
    flat = flat[0].long().sort().values
    rows = flat // z.shape[1]
    assert torch.equal(offsets.diff(), torch.bincount(rows, minlength=z.shape[0]))
    assert torch.equal(indices, (flat % z.shape[1]).int())
    assert_same(values, z.flatten()[flat].to(values.dtype), signed_zeros=False)


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("count", [1, 700, 19 * 1200])
def test_batch_topk_of_hard_numbers(kind: str, count: int) -> None:
    x, W, b = HARD[kind](*normal(19, 96, 1200))
    best_of_batch((x, W, b), count)
    best_of_batch((x, W.mT.contiguous().mT, b), count)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_topk_of_16_bit_inputs(dtype: torch.dtype) -> None:
    best_of_batch(normal(21, 64, 1700, dtype), 500)


@pytest.mark.parametrize("kind", ["plain", "all equal", "steep biases", "nearly equal", "latents that are not finite"])
def test_a_batch_that_overflows_its_candidates(kind: str) -> None:
    """More scores than there is room for."""
    problem = HARD.get(kind, lambda *plain: plain)(*normal(700, 64, 3000))
    best_of_batch(problem, 7000)


def test_a_batch_that_bounds_cannot_decide_goes_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screened_batch, "SCREENED_A_COMPUTED", 12)
    x, W, b = HARD["all equal"](*normal(700, 64, 3000))
    problem = x[:1].repeat(700, 1), W, b
    assert screened_batch.run(*problem, 7000, False) is None
    values, indices, offsets = linear_batch_topk.run(*problem, 7000, False)
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    expected = linear_batch_topk.run(*problem, 7000, False)
    assert_same(values, expected[0])
    assert_same(indices, expected[1])
    assert_same(offsets, expected[2])


@pytest.mark.parametrize("kind", HARD)
def test_threshold_of_hard_numbers(kind: str) -> None:
    problem = HARD[kind](*normal(19, 96, 1200))
    z = exact_scores(*problem)
    some = z[3:6, 600:900].flatten()
    finite = some[some.isfinite()]
    middle = finite.median() if finite.numel() else torch.tensor(0.0)
    for theta in (middle, finite.max() if finite.numel() else middle, z[4].nan_to_num(), torch.tensor(float("inf"))):
        above(problem, theta)
        above((problem[0], problem[1].mT.contiguous().mT, problem[2]), theta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_threshold_of_16_bit_inputs(dtype: torch.dtype) -> None:
    above(normal(21, 64, 1700, dtype), torch.tensor(2.0))
    above(normal(21, 128, 1700, dtype), torch.rand(1700) * 4)


def test_a_threshold_that_too_many_pass_goes_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens before those stay screened."""
    x, W, b = normal(64, 96, 1200)
    x[40:] *= 100
    problem, theta = (x, W, b), torch.tensor(4.0)
    monkeypatch.setattr(screened, "SCREENED_A_COMPUTED", 12)
    assert screened.pieces(*problem, theta)[1] == 32
    values, indices, offsets = linear_threshold.run(*problem, theta)
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "off")
    expected = linear_threshold.run(*problem, theta)
    assert torch.equal(offsets, expected[2])
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-4, atol=1e-4)
