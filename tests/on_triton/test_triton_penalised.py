"""relu, gated and jumprelu on the Triton kernels alone: loss and every gradient, against the reference."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close
from support.loss_gradients import loss_gradients

import sae_kernels as sk
from bench import cases

CODERS = {
    "relu": ("relu", {}),
    "gated": ("gated", {}),
    "jumprelu": ("jumprelu", {"bandwidth": 0.8, "threshold_init": 0.5}),
    "jumprelu-tanh": ("jumprelu", {"sparsity_loss": "tanh", "pre_act_coefficient": 0.1}),
}


def gradients(coder: sk.SparseCoder, backend: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return loss_gradients(coder, backend, cases.normal(6, 16))


@pytest.mark.parametrize("kind", CODERS)
def test_loss_and_gradients(kind: str) -> None:
    name, config = CODERS[kind]
    coder = sk.create(name, d_in=16, d_sae=40, sparsity_coefficient=0.3, seed=0, **config)
    mine, theirs = gradients(coder, "triton"), gradients(coder, "reference")
    torch.testing.assert_close(mine[0], theirs[0])
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert_close(a, b.double(), factor=5)
