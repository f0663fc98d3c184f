"""Normalisation folded into weights gives the coder that was trained; b_dec starts where it is told to."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures._affine import Affine
from sae_kernels.architectures._centre import centre, geometric_median

D, D_OUT, M, N = 7, 5, 30, 16
# architecture: its keys, and whether input and target are one tensor
FOLDED = {
    "topk": ({"k": 4}, True),
    "batch_topk": ({"k": 4}, True),
    "matryoshka": ({"k": 4}, True),
    "transcoder": ({"k": 4, "d_target": D_OUT}, False),
    "transcoder-skip": ({"k": 4, "d_target": D_OUT, "skip": True}, False),
    "relu": ({"sparsity_coefficient": 1.0}, True),
    "relu-2023": ({"sparsity_coefficient": 1.0, "variant": "2023"}, True),
    "gated": ({"sparsity_coefficient": 1.0}, True),
    "jumprelu": ({"sparsity_coefficient": 1.0}, True),
    "jumprelu-tanh": ({"sparsity_coefficient": 1.0, "sparsity_loss": "tanh"}, True),
}


def affine(d: int, seed: int, common: bool) -> Affine:
    scale = torch.full((d,), 0.37) if common else 0.5 + cases.normal(d, seed=seed).abs()
    return Affine(3 * cases.normal(d, seed=seed + 1), scale)


@pytest.mark.parametrize("common", [True, False], ids=["one scale", "a scale a feature"])
@pytest.mark.parametrize("kind", FOLDED)
def test_folded_weights_read_and_give_raw_activations(kind: str, common: bool) -> None:
    config, same = FOLDED[kind]
    coder = sk.create(kind.split("-")[0], d_in=D, d_sae=M, seed=0, **config)
    for i, parameter in enumerate(coder.parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=40 + i, scale=0.5)
    coder.double()
    input = affine(D, 1, common)
    target = input if same else affine(D_OUT, 5, common)
    x = (3 + 2 * cases.normal(N, D, seed=9)).double()
    before_codes = coder.encode(input.apply(x))
    before = target.invert(coder(input.apply(x)))
    norms = coder.W_dec.detach().norm(dim=1)
    coder.fold(input, target)
    codes = coder.encode(x)
    assert_close(coder(x).float().detach(), before.detach(), factor=50)
    torch.testing.assert_close(codes.fired(), before_codes.fired())
    if common:
        torch.testing.assert_close(coder.W_dec.detach().norm(dim=1), norms)


def test_the_geometric_median_minimises_the_sum_of_distances_and_resists_outliers() -> None:
    x = cases.normal(200, 3, seed=3)
    x[:10] += 1000
    m = geometric_median(x, x.mean(0))
    least = (x - m).norm(dim=1).sum()
    for step in 0.05 * cases.normal(50, 3, seed=4):
        assert (x - m - step).norm(dim=1).sum() > least
    assert m.norm() < 1 < x.mean(0).norm()


def test_centres() -> None:
    x = cases.normal(20, 3, seed=5)
    assert centre(x, "zero").tolist() == [0, 0, 0]
    torch.testing.assert_close(centre(x, "mean"), x.mean(0))
    same = x[:1].expand(9, 3)
    torch.testing.assert_close(centre(same, "geometric_median"), x[0])
    with pytest.raises(sk.errors.ConfigError, match=r"unknown value of b_dec_init 'median'.*did you mean"):
        sk.create("topk", d_in=3, d_sae=6, k=2, b_dec_init="median")
