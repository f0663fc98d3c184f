"""relu, gated and jumprelu learn; λ moves L0, and thresholds move, whatever the activations' scale and dtype."""

from __future__ import annotations

import pytest
import torch
from support.planted import toy, train

import sae_kernels as sk

pytestmark = pytest.mark.usefixtures("one_thread")


def make(name: str, **config: object) -> sk.SparseCoder:
    return sk.create(name, d_in=16, d_sae=48, seed=0, **config)


def l0(coder: sk.SparseCoder, scale: float = 1.0) -> float:
    x = (toy(512, seed=1000) * scale).to(coder.W_enc.dtype)
    return coder.encode(x).l0().double().mean().item()


LEARNING = {  # λ small and larger, and the FVU the smaller must reach
    "relu": ({}, 0.03, 0.6, 0.1),
    "relu-2023": ({"variant": "2023"}, 0.03, 0.6, 0.1),
    "gated": ({}, 0.03, 0.6, 0.1),
    "jumprelu": ({"bandwidth": 0.5, "threshold_init": 0.5}, 0.003, 0.1, 0.1),
    "jumprelu-tanh": ({"sparsity_loss": "tanh"}, 0.003, 0.1, 0.1),
}


@pytest.mark.parametrize("kind", LEARNING)
def test_the_loss_falls_and_a_larger_coefficient_makes_fewer_latents_active(cpu: str, kind: str) -> None:
    config, small, large, reached = LEARNING[kind]
    found = {}
    for coefficient in (small, large):
        coder = make(kind.split("-")[0], sparsity_coefficient=coefficient, **config)
        with sk.use(cpu):
            before, after = train(coder, steps=120)
            found[coefficient] = l0(coder)
        if coefficient == small:
            assert after < min(reached, before / 5)
    assert found[large] < 0.75 * found[small]
    assert found[large] > 0.5


def test_the_quadratic_loss_arrives_at_its_target_and_fits_as_well_as_topk_there(cpu: str) -> None:
    with sk.use(cpu):
        topk = make("topk", k=4)
        _, with_topk = train(topk, steps=300)
        coder = make(
            "jumprelu",
            sparsity_coefficient=1.0,
            sparsity_loss="quadratic",
            l0_target=4,
            bandwidth=1.0,
            threshold_init=1.0,
        )
        _, after = train(coder, steps=300)
        active, of_topk = l0(coder), l0(topk)
    assert active == pytest.approx(4, abs=0.5)
    assert of_topk == pytest.approx(4, abs=0.1)
    assert after < 1.15 * with_topk


@pytest.mark.parametrize("loss", ["l0", "tanh"])
def test_thresholds_move_both_ways(cpu: str, loss: str) -> None:
    """Up with λ; and without any, down from where they start too high (where the window is narrow)."""
    means = {}
    for coefficient in (0.0, 0.3):
        coder = make("jumprelu", sparsity_coefficient=coefficient, sparsity_loss=loss, threshold_init=0.5)
        x = toy(256)
        coder.initialise(x, x)
        start = coder.theta.mean().item()
        with sk.use(cpu):
            train(coder, steps=60)
        means[coefficient] = coder.theta.mean().item() / start
    if loss == "l0":
        assert means[0.0] < 0.97
    assert means[0.3] > {"l0": 1.1, "tanh": 1.005}[loss] * means[0.0], "tanh pushes z as well"


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_windows_and_thresholds_follow_the_scale_of_activations(cpu: str, scale: float) -> None:
    """The same data in other units: L0 moves as far (the squared error, and with it λ, counts in the units squared)."""

    def steps(scale: float) -> tuple[float, float]:
        coder = make("jumprelu", sparsity_coefficient=0.1 * scale**2, threshold_init=0.5)
        x = toy(256) * scale
        coder.initialise(x, x)
        before = l0(coder, scale)
        thresholds = [coder.log_theta]
        optimizer = torch.optim.Adam(thresholds, lr=0.02, eps=0)
        for step in range(60):
            loss = coder.loss(toy(256, seed=10 + 2 * step) * scale)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        return before, l0(coder, scale)

    with sk.use(cpu):
        before, after = steps(scale)
        assert after < before - 3
        assert (before, after) == pytest.approx(steps(1.0), rel=0.02)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_thresholds_move_in_bfloat16(cpu: str, how: str) -> None:
    """Steps of 1e-4 of log θ add up: bfloat16 thresholds, or windows narrower than its steps, would stand still."""
    coder = make("jumprelu", sparsity_coefficient=0.3, bandwidth=1e-3, threshold_init=0.5)
    x = toy(2048)
    coder.initialise(x, x)
    if how == "weights":
        coder.bfloat16()
        x = x.bfloat16()
    before = coder.log_theta.detach().clone()
    optimizer = torch.optim.Adam([coder.log_theta], lr=1e-4)
    with sk.use(cpu):
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                loss = coder.loss(x)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
    assert coder.log_theta.dtype == torch.float32
    moved = coder.log_theta - before
    assert (moved > 5e-4).float().mean() > 0.5
    assert (moved == 0).float().mean() < 0.1


def test_the_coefficient_warms_up(cpu: str) -> None:
    coder = make("jumprelu", sparsity_coefficient=0.8, sparsity_warmup_steps=4)
    x = toy(64)
    with sk.use(cpu):
        for step, factor in enumerate([0.25, 0.5, 0.75, 1.0, 1.0]):
            coder.on_step(step, 10)
            loss = coder.loss(x)
            expected = loss.parts["mse"] + 0.8 * factor * loss.parts["l0"]
            torch.testing.assert_close(loss.total.detach(), expected)
