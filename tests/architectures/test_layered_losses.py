"""ReLU transcoders, crosscoder, clt: reconstruction, loss and every gradient against dense float64 arithmetic written
here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.exact_losses import SCENARIOS, Expected, Weights, agrees, agrees_in_float64, chunked, prepared
from support.no_dense import D as BIG_D
from support.no_dense import M as BIG_M
from support.no_dense import N as BIG_N
from support.no_dense import step_without_dense
from torch import Tensor

import sae_kernels as sk
from bench import cases

L, D, D_OUT, M, N = 3, 12, 15, 42, 32  # all layers together; 4, 5 and 14 a layer
LAMBDA, C, EPSILON = 0.7, 1.5, 0.5


def row_norms(W: Tensor) -> Tensor:
    """A row of zeros has norm 0, and no gradient."""
    squares = W.square().sum(1)
    return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)


def transcoder(p: Weights, x: Tensor, y: Tensor) -> Expected:
    """2406.11944, with a skip 2501.18823."""
    acts = torch.relu(x @ p["W_enc"].T + p["b_enc"])
    found = acts @ p["W_dec"] + p["b_dec"]
    if "W_skip" in p:
        found = found + x @ p["W_skip"].T
    terms = {"mse": (y - found).square().sum() / N, "l1": acts.sum() / N}
    return found, terms, terms["mse"] + LAMBDA * terms["l1"]


def crosscoder(p: Weights, x: Tensor, y: Tensor) -> Expected:
    """Lindsey 2024, layer by layer."""
    layers = x.chunk(L, dim=1)
    encoders, decoders, biases = p["W_enc"].chunk(L, dim=1), p["W_dec"].chunk(L, dim=1), p["b_dec"].chunk(L)
    acts = torch.relu(sum(a @ E.T for a, E in zip(layers, encoders, strict=True)) + p["b_enc"])
    found = [acts @ W + b for W, b in zip(decoders, biases, strict=True)]
    mse = sum((a - b).square().sum() for a, b in zip(layers, found, strict=True)) / N
    norms = sum(row_norms(W) for W in decoders)
    terms = {"mse": mse, "l1": (acts * norms).sum() / N}
    return torch.cat(found, dim=1), terms, mse + LAMBDA * terms["l1"]


def clt(p: Weights, x: Tensor, y: Tensor) -> Expected:
    """Ameisen 2025, target by target; a term that is 0 carries each straight-through estimate (2407.14435)."""
    theta = p["log_theta"].exp()
    fixed = theta.detach()
    z = torch.cat([a @ E.T for a, E in zip(x.chunk(L, dim=1), p["W_enc"].chunk(L), strict=True)], 1) + p["b_enc"]
    rectangle = (((z - fixed) / EPSILON).abs() < 0.5).double().detach()
    acts = torch.where(z > fixed, z, 0) + fixed / EPSILON * rectangle * (fixed - theta)
    per_layer, width = M // L, y.shape[1] // L
    found = []
    for target in range(L):
        total = p["b_dec"].chunk(L)[target]
        for source in range(target + 1):
            first = (target - source) * width
            decoder = p[f"W_dec_from.{source}"][:, first : first + width]
            total = total + acts[:, source * per_layer : (source + 1) * per_layer] @ decoder
        found.append(total)
    norms = torch.cat([row_norms(p[f"W_dec_from.{source}"]) for source in range(L)])
    mse = (y - torch.cat(found, dim=1)).square().sum() / N
    terms = {"mse": mse, "tanh": torch.tanh(C * norms * acts).sum() / N, "l0": (z > fixed).double().sum() / N}
    return torch.cat(found, dim=1), terms, mse + LAMBDA * terms["tanh"]


KINDS: dict[str, tuple[str, dict[str, Any], Callable[..., Expected]]] = {
    "transcoder": ("transcoder", {"activation": "relu", "d_target": D_OUT}, transcoder),
    "skip_transcoder": ("skip_transcoder", {"activation": "relu", "d_target": D_OUT}, transcoder),
    "crosscoder": ("crosscoder", {"n_layers": L}, crosscoder),
    "clt": ("clt", {"n_layers": L, "d_target": D_OUT, "tanh_scale": C, "bandwidth": EPSILON}, clt),
}


def made(kind: str, scenario: str = "ordinary") -> tuple[sk.SparseCoder, Tensor, Tensor | None]:
    """A coder, a batch, and its target, where that is another."""
    name, config, _ = KINDS[kind]
    coder = sk.create(name, d_in=D, d_sae=M, sparsity_coefficient=LAMBDA, seed=0, **config)
    coder, x = prepared(coder, N, scenario)
    return coder, x, None if coder.d_out == D else cases.normal(N, D_OUT, seed=2)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient(backend: str, kind: str, scenario: str) -> None:
    agrees(*made(kind, scenario), KINDS[kind][2], backend)


@pytest.mark.parametrize("full", [False, True], ids=["sparse", "GEMMs"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_chunks(kind: str, scenario: str, full: bool) -> None:
    with chunked(full, slots=5 if scenario == "few positive" else 60):
        agrees(*made(kind, scenario), KINDS[kind][2], in_chunks=True)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_to_ten_digits(kind: str) -> None:
    """Thresholds are float32 to the kernels."""
    agrees_in_float64(*made(kind), KINDS[kind][2], loss_rtol=1e-10, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_close(kind: str) -> None:
    coder, x, y = made(kind)
    exact = {key: p.detach().double() for key, p in coder.named_parameters()}
    total = KINDS[kind][2](exact, x.double(), x.double() if y is None else y.double())[2]
    with torch.autocast("cpu", torch.bfloat16):
        loss = coder.loss(x, y)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert loss.reconstruction.dtype == loss.codes.values.dtype == torch.bfloat16
    assert abs(loss.total.item() / total.item() - 1) < 0.02
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in coder.parameters())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_nothing_dense(cpu: str, kind: str, autocast: torch.dtype | None) -> None:
    name, config, _ = KINDS[kind]
    if "n_layers" in config:
        config = {**config, "n_layers": 2}  # 8192 latents, 12 features
    if "d_target" in config:
        config = {**config, "d_target": 10}
    coder = sk.create(name, d_in=BIG_D, d_sae=BIG_M, sparsity_coefficient=LAMBDA, seed=0, **config)
    with torch.no_grad():  # as in training that has begun: a hundredth of the latents active, not half
        coder.b_enc -= 2.3 * coder.W_enc.norm(dim=1)
        for parameter in coder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    x = cases.normal(BIG_N, BIG_D, seed=1)
    with sk.use(cpu):
        y = x if coder.d_out == BIG_D else cases.normal(BIG_N, coder.d_out)
        step_without_dense(coder, x, y, steps=2, autocast=autocast)
        assert coder.encode(x).l0().double().mean() > 1
