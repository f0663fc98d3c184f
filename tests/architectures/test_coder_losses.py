"""topk and transcoder: reconstruction, loss and every gradient against dense float64 arithmetic written here."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close
from torch import Tensor

import sae_kernels as sk
from bench import cases

D, M, K, K_AUX, N = 12, 40, 5, 6, 32
ALPHA = 1 / 32
Dense = tuple[Tensor, Tensor, Tensor, Tensor]


def keep(z: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Dense acts: the chosen pre-acts, through a ReLU that passes nothing at 0."""
    mask = torch.zeros_like(z, dtype=torch.bool)
    for n, chosen in enumerate(dense.top_k_indices(z.detach(), k, among)):
        mask[n, chosen] = True
    return torch.where(mask & (z > 0), z, torch.zeros((), dtype=z.dtype))


def expected(
    p: dict[str, Tensor], x: Tensor, y: Tensor, dead: Tensor | None, centre: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(reconstruction, fvu, total) by the formulas of 2406.04093 and 2501.18823."""
    z = (x - p["b_dec"] if centre else x) @ p["W_enc"].T + p["b_enc"]
    acts = keep(z, K)
    found = acts @ p["W_dec"] + p["b_dec"]
    if "W_skip" in p:
        found = found + x @ p["W_skip"].T
    spread = (y - y.mean(0)).square().sum()
    fvu = (y - found).square().sum() / spread
    if dead is None or not dead.any():
        return found, fvu, fvu
    aux = keep(z, min(K_AUX, int(dead.sum())), dead)
    error = (y - found).detach()
    return found, fvu, fvu + ALPHA * (error - aux @ p["W_dec"]).square().sum() / spread


def coder(kind: str, **config: object) -> sk.SparseCoder:
    """With weights that no initialisation has: every parameter matters."""
    made = sk.create(kind, d_in=D, d_sae=M, k=K, k_aux=K_AUX, seed=0, **config)
    for i, parameter in enumerate(made.parameters()):
        parameter.data = cases.normal(*parameter.shape, seed=30 + i, scale=0.4)
    return made


KINDS = {
    "topk": ("topk", {}),
    "transcoder": ("transcoder", {}),
    "transcoder-wide": ("transcoder", {"d_target": 9}),
    "skip": ("transcoder", {"skip": True, "d_target": 9}),
}
DEAD = {
    "none": None,
    "nobody": torch.zeros(M, dtype=torch.bool),
    "some": torch.arange(M) % 3 == 0,
    "fewer than k_aux": torch.arange(M) < 2,
    "all": torch.ones(M, dtype=torch.bool),
}


def batch(kind: str, scenario: str) -> tuple[Tensor, Tensor]:
    x = cases.normal(N, D, seed=1)
    if scenario == "ties":
        x = cases.integers(N, D, seed=1)
    y = x if kind == "topk" else cases.normal(N, 9 if kind in ("transcoder-wide", "skip") else D, seed=2)
    return x, y


@pytest.mark.parametrize("scenario", ["ordinary", "few positive", "ties", "dead latents"])
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient(backend: str, kind: str, dead: str, scenario: str) -> None:
    name, config = KINDS[kind]
    made = coder(name, **config)
    with torch.no_grad():
        if scenario == "few positive":
            made.b_enc -= 2.5
        if scenario == "dead latents":
            made.b_enc[::3] = -100
        if scenario == "ties":  # integer pre-acts, and each latent twice
            for parameter in made.parameters():
                parameter.copy_((parameter * 4).round())
            made.W_enc[1::2], made.b_enc[1::2] = made.W_enc[::2].clone(), made.b_enc[::2].clone()
    x, y = batch(kind, scenario)
    x.requires_grad_()
    exact = {key: p.detach().double().requires_grad_() for key, p in made.named_parameters()}
    exact_x = x.detach().double().requires_grad_()
    exact_y = exact_x if kind == "topk" else y.double()
    found, fvu, total = expected(exact, exact_x, exact_y, DEAD[dead], centre=kind == "topk")
    with sk.use(backend):
        loss = made.loss(x, None if kind == "topk" else y, dead=DEAD[dead])
        grads = torch.autograd.grad(loss.total, [x, *made.parameters()])
        assert_close(made(x).detach(), found.detach(), factor=2)
    assert_close(loss.reconstruction.detach(), found.detach(), factor=2)
    assert_close(loss.total.detach(), total.detach(), factor=2)
    assert_close(loss.parts["fvu"], fvu.detach(), factor=2)
    assert ("auxk" in loss.parts) == (dead not in ("none", "nobody"))
    for mine, theirs in zip(grads, torch.autograd.grad(total, [exact_x, *exact.values()]), strict=True):
        assert_close(mine, theirs, factor=3)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_to_twelve_digits(kind: str) -> None:
    name, config = KINDS[kind]
    made = coder(name, **config).double()
    x, y = (t.double() for t in batch(kind, "ordinary"))
    exact = {key: p.detach().clone().requires_grad_() for key, p in made.named_parameters()}
    _, _, total = expected(exact, x, y, DEAD["some"], centre=kind == "topk")
    loss = made.loss(x, y, dead=DEAD["some"]).total
    torch.testing.assert_close(loss.double(), total, rtol=1e-6, atol=0)  # the loss itself is a float32 number


@pytest.mark.parametrize("kind", ["topk", "skip"])
def test_auxk_gradient_reaches_the_encoder_alone_of_the_dead(backend: str, kind: str) -> None:
    """None to the residual it fits, none to b_dec as a bias, none to W_skip."""
    name, config = KINDS[kind]
    x, y = batch(kind, "ordinary")
    dead = DEAD["some"]
    assert dead is not None
    grads = {}
    with sk.use(backend):
        for with_aux in (True, False):
            made = coder(name, **config)
            loss = made.loss(x, y, dead=dead if with_aux else None)
            loss.total.backward()
            grads[with_aux] = {key: p.grad for key, p in made.named_parameters()}
    extra = {key: grads[True][key] - grads[False][key] for key in grads[True]}
    assert (extra["W_enc"][dead].abs().sum(1) > 0).any(), "AuxK sends the encoder no gradient"
    for key in ("W_enc", "W_dec"):
        assert extra[key][~dead].abs().max() < 1e-6, f"AuxK reaches the {key} rows of living latents"
    if kind == "skip":
        assert extra["W_skip"].abs().max() < 1e-6
        assert extra["b_dec"].abs().max() < 1e-6
    else:  # b_dec is in the encoder's input: that, and nothing else
        through_encoder = -(extra["b_enc"].double() @ coder("topk").W_enc.double())
        torch.testing.assert_close(extra["b_dec"].double(), through_encoder, rtol=1e-3, atol=1e-6)


def test_a_coefficient_of_zero_turns_auxk_off() -> None:
    made = coder("topk", auxk_coefficient=0.0)
    assert set(made.loss(cases.normal(N, D), dead=DEAD["all"]).parts) == {"fvu"}
