"""Planted features, and a plain loop that trains a coder to find them."""

from __future__ import annotations

import torch
from torch import Tensor

import sae_kernels as sk
from bench import cases


def toy(n: int, d: int = 16, features: int = 24, seed: int = 0) -> Tensor:
    """Sparse positive combinations of fixed directions, off centre: what a sparse coder is for."""
    directions = torch.nn.functional.normalize(cases.normal(features, d, seed=99), dim=1)
    amounts = cases.normal(n, features, seed=seed).abs()
    active = torch.rand(n, features, generator=cases.generator(seed + 1)) < 0.12
    return (amounts * active) @ directions + 0.5


def train(coder: sk.SparseCoder, target_of=lambda x: x, steps: int = 80) -> tuple[float, float]:
    """FVU on held-out tokens, before and after; a latent is dead that did not fire in the batch before."""
    held_out = toy(512, seed=1000)
    y = target_of(held_out)

    def fvu() -> float:
        with torch.no_grad():
            error = y - coder.loss(held_out, y).reconstruction
        return ((error**2).sum() / ((y - y.mean(0)) ** 2).sum()).item()

    first = toy(256)
    coder.initialise(first, target_of(first))
    before = fvu()
    optimiser = torch.optim.Adam(coder.parameters(), lr=5e-3)
    dead = torch.zeros(coder.d_sae, dtype=torch.bool)
    for step in range(steps):
        x = toy(256, seed=10 + 2 * step)
        optimiser.zero_grad()
        coder.on_step(step, steps)
        loss = coder.loss(x, target_of(x), dead=dead)
        loss.total.backward()
        coder.before_step()
        optimiser.step()
        coder.after_step()
        dead = ~loss.codes.fired()
    return before, fvu()
