"""crosscoder, clt, ReLU transcoder on the Triton kernels alone: loss and every gradient, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import assert_close
from support.loss_gradients import loss_gradients

import sae_kernels as sk
from bench import cases

CODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "crosscoder": ("crosscoder", {"n_layers": 2}),
    "clt": ("clt", {"n_layers": 2, "d_target": 12, "bandwidth": 0.8, "threshold_init": 0.5}),
    "skip_transcoder": ("skip_transcoder", {"activation": "relu", "d_target": 12}),
}


def gradients(coder: sk.SparseCoder, backend: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return loss_gradients(coder, backend, cases.normal(6, 16), cases.normal(6, coder.d_out, seed=1))


@pytest.mark.parametrize("kind", CODERS)
def test_loss_and_gradients(kind: str) -> None:
    name, config = CODERS[kind]
    coder = sk.create(name, d_in=16, d_sae=40, sparsity_coefficient=0.3, seed=0, **config)
    with torch.no_grad():
        for i, (key, parameter) in enumerate(coder.named_parameters()):
            if key.startswith("W_"):  # some begin at 0
                parameter.copy_(cases.normal(*parameter.shape, seed=i, scale=0.4))
    mine, theirs = gradients(coder, "triton"), gradients(coder, "reference")
    torch.testing.assert_close(mine[0], theirs[0])
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert b.any()
        assert_close(a, b.double(), factor=5)
