"""Steps of relu, gated and jumprelu hold nothing of (tokens, d_sae) elements; the dense terms' scratch is bounded."""

from __future__ import annotations

import pytest
import torch
from support.no_dense import D, M, N, NoDense, step_without_dense

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import _dense_terms
from sae_kernels.kernels import _pre_acts

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = {"initial_density": 0.5}
CODERS = {
    "relu": ("relu", HALF),
    "relu-2023": ("relu", {"variant": "2023", **HALF}),
    "gated": ("gated", HALF),
    "gated-free": ("gated", {"normalize_decoder": False, **HALF}),
    "jumprelu": ("jumprelu", {"bandwidth": 0.02, "threshold_init": 0.06}),
    "jumprelu-quadratic": ("jumprelu", {"sparsity_loss": "quadratic", "l0_target": 9}),
    "jumprelu-tanh": ("jumprelu", {"sparsity_loss": "tanh"}),
}


def fresh(kind: str, bias: float = 0.0) -> tuple[sk.SparseCoder, torch.Tensor]:
    """Half of the latents are active, as at the most, and every pair is in the window of `jumprelu-tanh`. With a
    `bias`, in units of the pre-acts' spread, fewer are."""
    name, config = CODERS[kind]
    coder = sk.create(name, d_in=D, d_sae=M, sparsity_coefficient=0.1, sparsity_warmup_steps=2, seed=0, **config)
    x = cases.normal(N, D)
    coder.initialise(x, x)
    with torch.no_grad():
        for each in ("b_enc", "b_gate"):
            if hasattr(coder, each):
                getattr(coder, each).sub_(bias * coder.W_enc.norm(dim=1))
    return coder, x


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu", "jumprelu-tanh"])
def test_the_first_step_holds_nothing_dense(cpu: str, kind: str) -> None:
    coder, x = fresh(kind)
    with sk.use(cpu):
        watch = step_without_dense(coder, x)
        active = coder.encode(x).values.numel()
    if kind != "jumprelu-tanh":
        assert active > N * M / 4, "codes are not as full as they get"
    assert watch.largest <= 0.6 * N * M


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("kind", CODERS)
def test_later_there_are_but_chunks_of_fixed_size(cpu: str, kind: str, autocast: torch.dtype | None) -> None:
    coder, x = fresh(kind, bias=2.0)
    with sk.use(cpu):
        assert 0 < coder.encode(x).values.numel() < N * M / 20
        watch = step_without_dense(coder, x, autocast=autocast)
    assert watch.largest <= max(_pre_acts.SCORES, _dense_terms.CHUNK)


def test_the_dense_terms_keep_to_their_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller chunk, smaller tensors, the same result."""
    coder, x = fresh("jumprelu-tanh")
    with torch.no_grad():
        coder.b_enc -= 0.3
    found = {}
    for chunk in (_dense_terms.CHUNK, 100_000):
        monkeypatch.setattr(_dense_terms, "CHUNK", chunk)
        coder.zero_grad()
        x = x.detach().requires_grad_()
        with sk.use("cpu"), NoDense(N, M):
            loss = coder.loss(x)
            terms = loss.parts["tanh"] + loss.parts["pre_act"]
        with NoDense(N, M) as watch:
            loss.total.backward()
        found[chunk] = terms, [p.grad.clone() for p in (x, *coder.parameters()) if p.grad is not None]
        assert watch.largest <= max(chunk, M * D, 2 * loss.codes.values.numel())
    (few, mine), (many, theirs) = found.values()
    torch.testing.assert_close(few, many)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
