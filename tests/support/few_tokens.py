"""Encodes of a few tokens, and what they must find."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_kernels.kernels.linear_threshold import cpu as linear_threshold
from sae_kernels.kernels.linear_topk import cpu as linear_topk
from support.compare import assert_same
from support.screening import Problem, assert_best, exact_scores

SCREENED, CONTRADICTED, GIVEN_UP = 1, 2, 4  # what a call tells: kernels.h


def select(problem: Problem, k: int, among: Tensor | None = None, relu: bool = False) -> list[Tensor]:
    return linear_topk.run(*problem, [k], [relu], [among])


def expect(problem: Problem, k: int, among: Tensor | None = None) -> None:
    """The k best of the exact scores, latents ascending; then empty slots."""
    assert_best(problem, k, select(problem, k, among), among)


def above(problem: Problem, theta: Tensor) -> None:
    """What is not <= theta of the exact scores."""
    values, indices, offsets = linear_threshold.run(*problem, theta)
    z = exact_scores(*problem)
    stays = ~(z <= theta)
    assert torch.equal(offsets.diff(), stays.sum(1))
    assert torch.equal(indices, stays.nonzero()[:, 1].int())
    assert_same(values, z[stays].to(problem[0].dtype), signed_zeros=False)
