"""A whole loss and its gradients on the Triton kernels alone, AuxK and all, against the reference."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close
from support.loss_gradients import loss_gradients

import sae_kernels as sk
from bench import cases
from sae_kernels.kernels._triton import by_latent
from sae_kernels.kernels.transpose import triton as transpose

D, M, K = 16, 40, 4
CODERS = {"topk": {}, "transcoder": {"d_target": 12, "skip": True}}


def gradients(coder: sk.SparseCoder, backend: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    target = cases.normal(6, coder.d_out, seed=1) if coder.architecture == "transcoder" else None
    return loss_gradients(coder, backend, cases.normal(6, D), target, torch.arange(M) % 3 == 0)


@pytest.mark.parametrize("architecture", CODERS)
def test_loss_and_gradients(architecture: str) -> None:
    coder = sk.create(architecture, d_in=D, d_sae=M, k=K, **CODERS[architecture])
    mine, theirs = gradients(coder, "triton"), gradients(coder, "reference")
    torch.testing.assert_close(mine[0], theirs[0])
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert_close(a, b.double(), factor=5)


def test_one_sort_serves_both_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """dW_dec, dW_enc and db_enc of a plain step."""
    sorts = []
    real = transpose.by_latent
    monkeypatch.setattr(by_latent.transpose, "by_latent", lambda codes: sorts.append(codes) or real(codes))
    W_enc, b_enc, W_dec, b_dec = (t.requires_grad_() for t in cases.dictionary(cases.Size(6, D, M, K)))
    with sk.use("triton"):
        codes = sk.encode(cases.normal(6, D), W_enc, b_enc, sk.TopK(K))
        sk.decode(codes, W_dec, b_dec).square().sum().backward()
    assert len(sorts) == 1
