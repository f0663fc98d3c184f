"""Biases with which each latent starts out active on a given share of the tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.no_dense import NoDense

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import _density
from sae_kernels.architectures._density import SAMPLE, bias_of_density
from sae_kernels.errors import ConfigError, ShapeError

D, M = 6, 33


def active(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, minus: torch.Tensor | None = None) -> list[int]:
    """Tokens on which each latent is active, in float64."""
    x = x.double() - (0 if minus is None else minus.double())
    return (x @ W.double().T + b.double() > 0).sum(0).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "density", "expected"), [(200, 0.05, 10), (101, 0.5, 50), (7, 0.01, 1), (7, 0.99, 6)])
def test_as_many_tokens_as_asked_for(n: int, density: float, expected: int, dtype: torch.dtype) -> None:
    x, W, minus = 3 + cases.normal(n, D), cases.normal(M, D, seed=1).to(dtype), cases.normal(D, seed=2)
    for off in (None, minus):
        b = bias_of_density(x, W, density, off)
        assert b.dtype == dtype
        assert active(x, W, b, off) == [expected] * M


def test_a_sample_in_parts_of_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tokens only some are looked at, and never all latents at once; the result is the same."""
    x, W = cases.normal(5 * SAMPLE + 3, D), cases.normal(M, D, seed=1)
    x[::7] *= 3
    expected = bias_of_density(x, W, 0.1)
    share = torch.tensor(active(x, W, expected)) / len(x)
    torch.testing.assert_close(share, torch.full((M,), 0.1), atol=0.03, rtol=0)
    with NoDense(SAMPLE, 8192) as watch:
        bias_of_density(x, cases.normal(8192, D), 0.1)
    assert watch.largest <= _density.NUMBERS
    monkeypatch.setattr(_density, "NUMBERS", 3 * SAMPLE)
    torch.testing.assert_close(bias_of_density(x, W, 0.1), expected)


def test_tokens_that_are_the_same() -> None:
    """All of them are active, if one has to be; and a single token is."""
    W, x = cases.normal(M, D), cases.normal(100, D, seed=1)
    for same in (x[:1], x[:1].expand(9, -1)):
        assert active(same, W, bias_of_density(same, W, 0.05)) == [len(same)] * M
    x[::10] = 50 * x[0]
    found = active(x, W, bias_of_density(x, W, 0.05))
    assert {5, 10} <= set(found) <= {5, 6, 10}  # of those turned away from the ten (two nearly the same); others


def test_positions_that_recur_do_not_count_for_more() -> None:
    """Sequences in order, each of which begins with the same token of a large norm."""
    W, x = cases.normal(M, 64), cases.normal(16 * SAMPLE, 64, seed=1)
    x[::128] = 100 * cases.normal(1, 64, seed=2)
    b = bias_of_density(x, W, 0.05)
    others = torch.arange(len(x)) % 128 != 0
    share = torch.tensor(active(x[others], W, b)) / int(others.sum())
    assert share.min() > 0.02
    assert share.max() < 0.09


def test_no_tokens() -> None:
    with pytest.raises(ShapeError, match=re.escape("x is (0, 6), expected at least one row to start from")):
        bias_of_density(torch.empty(0, D), cases.normal(M, D), 0.05)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("relu", {}),
        ("relu", {"subtract_b_dec": True}),
        ("gated", {}),
        ("gated", {"subtract_b_dec": False}),
        ("crosscoder", {"n_layers": 2}),
        ("transcoder", {"activation": "relu", "d_target": 4}),
        ("skip_transcoder", {"activation": "relu", "subtract_b_dec": True}),
    ],
    ids=str,
)
def test_coders_start_with_it(name: str, config: dict[str, Any]) -> None:
    coder = sk.create(name, d_in=D, d_sae=M, sparsity_coefficient=0.1, initial_density=0.2, seed=0, **config)
    x = 5 + cases.normal(60, D)
    coder.initialise(x, cases.normal(60, coder.d_out, seed=1))
    codes = coder.encode(x).dense()
    assert (codes > 0).sum(0).tolist() == [12] * M
    if name == "gated":  # magnitudes are what the gates see
        assert torch.equal(coder.get_parameter("b_mag"), coder.get_parameter("b_gate"))


def test_a_topk_transcoder_has_none() -> None:
    with pytest.raises(ConfigError, match=re.escape("initial_density = 0.1 with activation = 'topk', which has no")):
        sk.create("transcoder", d_in=D, d_sae=M, k=3, initial_density=0.1)
    for value in (0, 1.0, -0.1, True, "0.1", float("nan")):
        with pytest.raises(ConfigError, match=re.escape(f"initial_density = {value!r}, expected a number between 0")):
            sk.create("transcoder", d_in=D, d_sae=M, sparsity_coefficient=1, activation="relu", initial_density=value)
