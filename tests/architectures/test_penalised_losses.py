"""relu, gated and jumprelu: reconstruction, loss and every gradient against dense float64 arithmetic written here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.exact_losses import SCENARIOS, Expected, Weights, agrees, agrees_in_float64, chunked, prepared
from torch import Tensor

import sae_kernels as sk

D, M, N = 12, 40, 32
LAMBDA = 0.7


def mean_square(y: Tensor, found: Tensor) -> Tensor:
    return (y - found).square().sum() / N


def norms(p: Weights) -> Tensor:
    return p["W_dec"].square().sum(1).sqrt()


def relu(p: Weights, x: Tensor, *, norm: bool, centre: bool) -> Expected:
    """Circuits Updates April 2024; Towards Monosemanticity."""
    acts = torch.relu((x - p["b_dec"] if centre else x) @ p["W_enc"].T + p["b_enc"])
    found = acts @ p["W_dec"] + p["b_dec"]
    terms = {"mse": mean_square(x, found), "l1": (acts * (norms(p) if norm else 1)).sum() / N}
    return found, terms, terms["mse"] + LAMBDA * terms["l1"]


def gated(p: Weights, x: Tensor, *, free: bool, freeze: bool = True) -> Expected:
    """2404.16014."""
    h = (x - p["b_dec"]) @ p["W_enc"].T
    pi = h + p["b_gate"]
    acts = torch.where(pi > 0, torch.relu(p["r_mag"].exp() * h + p["b_mag"]), 0)
    found = acts @ p["W_dec"] + p["b_dec"]
    decoder = [p[name].detach() if freeze else p[name] for name in ("W_dec", "b_dec")]
    by_gates = torch.relu(pi) @ decoder[0] + decoder[1]
    terms = {
        "mse": mean_square(x, found),
        "l1": (torch.relu(pi) * (norms(p) if free else 1)).sum() / N,
        "auxiliary": mean_square(x, by_gates),
    }
    return found, terms, terms["mse"] + LAMBDA * terms["l1"] + terms["auxiliary"]


def jumprelu(p: Weights, x: Tensor, *, epsilon: float, terms_of: Callable[..., tuple[dict, Tensor]]) -> Expected:
    """2407.14435: a term that is 0 carries each estimate. The tanh loss passes f's to z too."""
    theta = p["log_theta"].exp()
    z = x @ p["W_enc"].T + p["b_enc"]
    fixed = theta.detach()
    rectangle = (((z - fixed) / epsilon).abs() < 0.5).double().detach()
    passed = z - z.detach() if terms_of is of_tanh else 0
    acts = torch.where(z > fixed, z, 0) + fixed / epsilon * rectangle * (fixed - theta + passed)
    steps = (z > fixed) + rectangle / epsilon * (fixed - theta)
    found = acts @ p["W_dec"] + p["b_dec"]
    terms, penalty = terms_of(p, z, theta, acts, steps)
    return found, {"mse": mean_square(x, found), **terms}, mean_square(x, found) + penalty


def of_l0(p: Weights, z: Tensor, theta: Tensor, acts: Tensor, steps: Tensor) -> tuple[dict, Tensor]:
    l0 = steps.sum() / N
    return {"l0": l0}, LAMBDA * l0


def of_quadratic(p: Weights, z: Tensor, theta: Tensor, acts: Tensor, steps: Tensor) -> tuple[dict, Tensor]:
    l0 = steps.sum() / N
    return {"l0": l0, "quadratic": (l0 / 3 - 1) ** 2}, LAMBDA * (l0 / 3 - 1) ** 2


def of_tanh(p: Weights, z: Tensor, theta: Tensor, acts: Tensor, steps: Tensor) -> tuple[dict, Tensor]:
    """Circuits Updates January 2025."""
    tanh = torch.tanh(1.5 * acts * norms(p)).sum() / N
    pre_act = (torch.relu(theta - z) * norms(p)).sum() / N
    return {"tanh": tanh, "pre_act": pre_act}, LAMBDA * tanh + 0.3 * pre_act


def jump(loss: str, epsilon: float, **config: object) -> tuple[str, dict, Callable[..., Expected]]:
    terms = {"l0": of_l0, "quadratic": of_quadratic, "tanh": of_tanh}[loss]
    return (
        "jumprelu",
        {"sparsity_loss": loss, "bandwidth": epsilon, **config},
        lambda p, x: jumprelu(p, x, epsilon=epsilon, terms_of=terms),
    )


KINDS = {
    "relu": ("relu", {}, lambda p, x: relu(p, x, norm=True, centre=False)),
    "relu-2023": ("relu", {"variant": "2023"}, lambda p, x: relu(p, x, norm=False, centre=True)),
    "gated": ("gated", {}, lambda p, x: gated(p, x, free=False)),
    "gated-free": ("gated", {"normalize_decoder": False}, lambda p, x: gated(p, x, free=True)),
    "gated-shared": ("gated", {"freeze_auxiliary": False}, lambda p, x: gated(p, x, free=False, freeze=False)),
    "jumprelu": jump("l0", 0.25),
    "jumprelu-wide": jump("l0", 2.0),
    "jumprelu-quadratic": jump("quadratic", 0.5, l0_target=3),
    "jumprelu-tanh": jump("tanh", 2.0, tanh_scale=1.5, pre_act_coefficient=0.3),
    "jumprelu-tanh-narrow": jump("tanh", 0.25, tanh_scale=1.5, pre_act_coefficient=0.3),
}


def made(kind: str, scenario: str = "ordinary") -> tuple[sk.SparseCoder, Tensor]:
    """A coder, and a batch."""
    name, config, _ = KINDS[kind]
    coder = sk.create(name, d_in=D, d_sae=M, sparsity_coefficient=LAMBDA, seed=0, **config)
    return prepared(coder, N, scenario)


def exact(kind: str) -> Callable[..., Expected]:
    return lambda p, x, y: KINDS[kind][2](p, x)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient(backend: str, kind: str, scenario: str) -> None:
    coder, x = made(kind, scenario)
    agrees(coder, x, None, exact(kind), backend)


@pytest.mark.parametrize("full", [False, True], ids=["sparse", "GEMMs"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_chunks(kind: str, scenario: str, full: bool) -> None:
    coder, x = made(kind, scenario)
    with chunked(full, slots=5 if scenario == "few positive" else 60):
        agrees(coder, x, None, exact(kind), in_chunks=True)


@pytest.mark.parametrize("full", [False, True], ids=["sparse", "GEMMs"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_chunks_in_float64_to_twelve_digits(kind: str, full: bool) -> None:
    coder, x = made(kind)
    with chunked(full):
        agrees_in_float64(coder, x, None, exact(kind), loss_rtol=1e-12, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_to_twelve_digits(kind: str) -> None:
    coder, x = made(kind)
    agrees_in_float64(coder, x, None, exact(kind), loss_rtol=1e-12, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_under_autocast_stays_near(backend: str, kind: str) -> None:
    """Within what rounding of weights and inputs to bfloat16 gives; thresholds and sums in float32."""
    coder, x = made(kind)
    plain = coder.loss(x).total
    with sk.use(backend), torch.autocast(x.device.type, torch.bfloat16):
        loss = coder.loss(x)
    assert loss.total.dtype == torch.float32
    assert loss.codes.values.dtype == torch.bfloat16
    torch.testing.assert_close(loss.total.detach(), plain.detach(), rtol=0.03, atol=0)
    for name, mine, theirs in zip(
        dict(coder.named_parameters()),
        torch.autograd.grad(loss.total, list(coder.parameters())),
        torch.autograd.grad(plain, list(coder.parameters())),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        # few pairs are in a window: one that enters or leaves it shows
        assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > (0.8 if name == "log_theta" else 0.98)


@pytest.mark.parametrize("kind", KINDS)
def test_leading_shapes_and_weights_of_16_bits(kind: str) -> None:
    coder, x = made(kind)
    flat, shaped = coder(x), coder(x.reshape(4, 8, D))
    torch.testing.assert_close(shaped, flat.reshape(4, 8, D))
    assert coder.encode(x.reshape(4, 8, D)).lead_shape == (4, 8)
    coder.bfloat16()
    loss = coder.loss(x.bfloat16())
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert (loss.reconstruction.dtype, loss.codes.values.dtype) == (torch.bfloat16, torch.bfloat16)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in coder.parameters())
