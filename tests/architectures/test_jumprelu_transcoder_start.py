"""Where a JumpReLU transcoder starts: at the target's mean, unless rows of norm 1 are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sae_kernels as sk

LOSSES: dict[str, dict[str, Any]] = {
    "l0": {},
    "quadratic": {"sparsity_loss": "quadratic", "l0_target": 4.0},
    "tanh": {"sparsity_loss": "tanh"},
}


def made(**keys: Any) -> sk.SparseCoder:
    """16 latents, 8 features to 6."""
    coder = sk.create("jumprelu_transcoder", d_in=8, d_sae=16, d_target=6, sparsity_coefficient=0.1, seed=3, **keys)
    return coder.train()


@pytest.mark.parametrize("loss", ["l0", "quadratic"])
def test_its_first_prediction_is_the_mean(loss: str) -> None:
    coder = made(**LOSSES[loss])
    x, y = torch.randn(64, 8), torch.randn(64, 6) + 3
    coder.initialise(x, y)
    assert coder.encode(x).l0().sum() > 0
    assert torch.allclose(coder.loss(x, y).reconstruction, y.mean(0).expand(64, 6))
    assert coder.unit_norm_rows == ()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_step_moves_decoder_and_keeps_it_free(loss: str) -> None:
    coder = made(**LOSSES[loss])
    x, y = torch.randn(64, 8), torch.randn(64, 6)
    coder.initialise(x, y)
    coder.on_step(0, 10)
    coder.loss(x, y).total.backward()
    grad = coder.W_dec.grad
    assert grad is not None
    assert (grad != 0).any()
    before = coder.W_dec.detach().clone()
    coder.before_step()
    with torch.no_grad():
        coder.W_dec -= 0.1 * grad
    coder.after_step()
    assert torch.equal(coder.W_dec, before - 0.1 * grad)


def test_rows_of_norm_1_where_asked_for() -> None:
    coder = made(normalize_decoder=True)
    assert coder.unit_norm_rows == ("W_dec",)
    assert torch.allclose(coder.W_dec.norm(dim=1), torch.ones(16))
