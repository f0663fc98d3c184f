"""Losses of coders against dense float64 arithmetic: weights and batches in which every parameter has a part, and the
comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from bench import cases
from sae_kernels.architectures import _by_tokens
from sae_kernels.architectures._later_codes import LaterCodes

from .compare import assert_close

SCENARIOS = ("ordinary", "few positive", "ties", "dead latents")
Weights = dict[str, Tensor]
Expected = tuple[Tensor, dict[str, Tensor], Tensor]  # reconstruction, terms, total
BIASES, LOGARITHMS = ("b_enc", "b_gate"), ("log_theta", "r_mag")


def prepared(coder: sk.SparseCoder, n: int, scenario: str = "ordinary") -> tuple[sk.SparseCoder, Tensor]:
    """A coder with weights that no initialisation has, so that every parameter matters; and a batch (n, d_in)."""
    for i, (key, parameter) in enumerate(coder.named_parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=30 + i, scale=0.4)
        if key == "log_theta":
            parameter.data -= 0.7
    with torch.no_grad():
        for key, parameter in coder.named_parameters():
            if scenario == "few positive" and key in BIASES:
                parameter -= 2.5
            if scenario == "dead latents" and key in BIASES:
                parameter[::3] = -100
            if scenario == "ties":  # integer pre-acts, on the edge of every step and window; and each latent twice
                parameter.copy_(parameter.zero_() if key in LOGARITHMS else (parameter * 4).round())
                if parameter.shape[0] == coder.d_sae:
                    parameter[1::2] = parameter[::2].clone()
    make = cases.integers if scenario == "ties" else cases.normal
    return coder, make(n, coder.d_in, seed=1)


@contextlib.contextmanager
def chunked(full: bool, slots: int = 60, pairs: int = 400) -> Iterator[None]:
    """Losses go through the batch in chunks of about so many slots, or in GEMMs so many pairs of token and latent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_by_tokens, "SMALL", 0)
        patch.setattr(_by_tokens, "_limits", lambda *_: (slots, pairs))
        patch.setattr(_by_tokens, "_gemms_pay", lambda *_: full)
        yield


def agrees(
    coder: sk.SparseCoder,
    x: Tensor,
    y: Tensor | None,
    exact: Callable[[Weights, Tensor, Tensor], Expected],
    backend: str = "",
    in_chunks: bool = False,
) -> sk.Loss:
    """Reconstruction, loss, terms and every gradient, that of x too, on a backend ("": whichever is chosen) are those
    of `exact(weights, x, y)`; y None: x. → the loss."""
    x = x.detach().clone().requires_grad_()
    weights = {key: p.detach().double().requires_grad_() for key, p in coder.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    found, terms, total = exact(weights, exact_x, exact_x if y is None else y.double())
    with sk.use(backend):
        loss = coder.loss(x, y)
        forward, active = coder(x).detach(), coder.encode(x)
    assert isinstance(loss.codes, LaterCodes) == in_chunks
    assert torch.equal(loss.codes.l0(), active.l0())
    assert torch.equal(loss.codes.fired(), active.fired())
    grads = torch.autograd.grad(loss.total, [x, *coder.parameters()])  # outside: on the backend of the forward
    assert_close(forward, found.detach(), factor=2)
    assert_close(loss.reconstruction.detach(), found.detach(), factor=2)
    assert_close(loss.total.detach(), total.detach(), factor=2)
    assert set(loss.parts) == set(terms)
    for name, term in terms.items():
        assert_close(loss.parts[name], term.detach(), factor=2)
    theirs = torch.autograd.grad(total, [exact_x, *weights.values()])
    for name, mine, other in zip(["x", *weights], grads, theirs, strict=True):
        assert other.any(), f"{name} has no gradient here: nothing is compared"
        assert_close(mine, other, factor=4)
    return loss


def agrees_in_float64(
    coder: sk.SparseCoder,
    x: Tensor,
    y: Tensor | None,
    exact: Callable[[Weights, Tensor, Tensor], Expected],
    *,
    loss_rtol: float,
    rtol: float,
    atol: float,
) -> None:
    """The loss of the coder made float64, and its gradients."""
    coder.double()
    x = x.double()
    y = None if y is None else y.double()
    weights = {key: p.detach().clone().requires_grad_() for key, p in coder.named_parameters()}
    total = exact(weights, x, x if y is None else y)[2]
    loss = coder.loss(x, y).total
    torch.testing.assert_close(loss, total, rtol=loss_rtol, atol=0)
    mine = torch.autograd.grad(loss, list(coder.parameters()))
    for a, b in zip(mine, torch.autograd.grad(total, list(weights.values())), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
