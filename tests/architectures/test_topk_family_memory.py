"""A step of the top-k family holds nothing of (tokens, d_sae) elements, and matryoshka a few (P, tokens, d_in)."""

from __future__ import annotations

import pytest
import torch
from support.no_dense import D, M, N, NoDense, step_without_dense

import sae_kernels as sk
from bench import cases

pytestmark = pytest.mark.usefixtures("one_thread")

CODERS = {
    "multi_topk": ("topk", {"multi_topk": True, "k_anneal_from": 12, "k_anneal_steps": 2}),
    "multi_topk transcoder": ("transcoder", {"multi_topk": True, "skip": True}),
    "batch_topk": ("batch_topk", {"k_anneal_from": 12, "k_anneal_steps": 2}),
    "matryoshka": ("matryoshka", {}),
}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("kind", CODERS)
def test_steps(cpu: str, kind: str, autocast: torch.dtype | None) -> None:
    name, config = CODERS[kind]
    coder = sk.create(name, d_in=D, d_sae=M, k=8, seed=0, **config)
    with sk.use(cpu):
        watch = step_without_dense(coder, cases.normal(N, D), dead=torch.arange(M) % 3 == 0, steps=2, autocast=autocast)
    assert watch.largest >= M * D, "it did not even see a parameter's gradient"


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_encoding_by_threshold(cpu: str, kind: str) -> None:
    coder = sk.create(kind, d_in=D, d_sae=M, k=8, seed=0)
    x = cases.normal(N, D)
    with sk.use(cpu):
        coder.loss(x)
        with NoDense(N, M), torch.no_grad():
            coder.eval()(x)
