"""One token, tiny sizes: what a call costs before there is anything to compute.

A thousand calls are timed at once: milliseconds in the table are microseconds a call.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check

SIZE = cases.Size(1, 16, 64, 8)
CALLS = 1000
GRADIENTS = pytest.mark.parametrize("gradients", [False, True], ids=["no gradient", "gradient wanted"])


def calls(function: Callable[[], object]) -> Callable[[], None]:
    """Many calls, one after the other."""

    def repeated() -> None:
        for _ in range(CALLS):
            function()

    return repeated


def dictionary(gradients: bool) -> tuple[Tensor, ...]:
    """W_enc, b_enc, W_dec, b_dec."""
    return tuple(tensor.requires_grad_(gradients) for tensor in cases.dictionary(SIZE))


@GRADIENTS
def test_decode(race: Callable, gradients: bool) -> None:
    codes = cases.codes(SIZE, empty=0)
    _, _, W, _ = dictionary(gradients)

    def bag() -> Tensor:
        return F.embedding_bag(codes.indices, W, per_sample_weights=codes.values, mode="sum")

    check(sk.decode(codes, W).detach(), bag().detach())
    race("decode of one token", {OURS: calls(lambda: sk.decode(codes, W)), "torch embedding_bag": calls(bag)})


@GRADIENTS
def test_encode(race: Callable, gradients: bool) -> None:
    W, b, _, _ = dictionary(gradients)
    x, selection = cases.normal(SIZE.n, SIZE.d), sk.TopK(SIZE.k)

    def plain() -> tuple[Tensor, Tensor]:
        values, indices = F.linear(x, W, b).topk(SIZE.k, sorted=False)
        return values.relu(), indices

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, selection)

    check(ours().values.detach().sort().values, plain()[0].detach().sort().values)
    race("encode TopK of one token", {OURS: calls(ours), "torch linear + topk + relu": calls(plain)})


@GRADIENTS
def test_encode_threshold(race: Callable, gradients: bool) -> None:
    W, b, _, _ = dictionary(gradients)
    x, selection = cases.normal(SIZE.n, SIZE.d), sk.Threshold(0.5)

    def plain() -> Tensor:
        z = F.linear(x, W, b)
        return torch.where(z > 0.5, z, 0)

    check(sk.encode(x, W, b, selection).dense().detach(), plain().detach())
    race("encode Threshold of one token", {OURS: calls(lambda: sk.encode(x, W, b, selection)), "torch": calls(plain)})


def test_top_k(race: Callable) -> None:
    scores = cases.scores("normal", SIZE.n, SIZE.d_sae, torch.float32)

    def plain() -> tuple[Tensor, Tensor]:
        return torch.topk(scores, SIZE.k, sorted=False)

    assert torch.equal(sk.topk(scores, SIZE.k)[0].sort().values, plain()[0].sort().values)
    race("topk of one row", {OURS: calls(lambda: sk.topk(scores, SIZE.k)), "torch.topk": calls(plain)})
