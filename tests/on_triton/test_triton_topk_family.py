"""Multi-TopK, batch_topk and matryoshka on the Triton kernels alone: loss, gradients and threshold, as on the
reference."""

from __future__ import annotations

import pytest
from support.compare import assert_close
from torch import Tensor

import sae_kernels as sk
from bench import cases

CODERS = {
    "multi_topk": ("topk", {"multi_topk": True}),
    "batch_topk": ("batch_topk", {}),
    "matryoshka": ("matryoshka", {"prefixes": (3, 10, 24)}),
}


def step(coder: sk.SparseCoder, backend: str) -> dict[str, Tensor]:
    """The loss, its gradients, and what the coder is and encodes afterwards."""
    x, dead = cases.normal(6, 16), cases.some(24, 0.3)
    with sk.use(backend):
        loss = coder.train().loss(x, dead=dead)
        loss.total.backward()
        acts = coder.eval().encode(cases.normal(6, 16, seed=1)).dense()
    grads = {name: p.grad for name, p in coder.named_parameters() if p.grad is not None}
    assert len(grads) == 4
    return {"loss": loss.total.detach(), "acts": acts.detach(), **grads, **dict(coder.named_buffers())}


@pytest.mark.parametrize("kind", CODERS)
def test_a_step(kind: str) -> None:
    name, config = CODERS[kind]
    found, truth = (
        step(sk.create(name, d_in=16, d_sae=24, k=3, k_aux=4, seed=0, **config), backend)
        for backend in ("triton", "reference")
    )
    assert found.keys() == truth.keys()
    for key, tensor in found.items():
        assert_close(tensor, truth[key].double(), factor=2)
