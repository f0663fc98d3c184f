"""A training step of a TopK autoencoder: encode, decode, MSE, every gradient; alone and with fused Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench.gpu.decoding import gather_bytes
from bench.gpu.encoding import compiled, least, top_k
from bench.gpu.problem import Problem
from bench.gpu.race import OURS, Comparison, Contender

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


def ours(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    return F.mse_loss(sk.decode(sk.encode(x, W_enc, b_enc, sk.TopK(k)), W_dec, b_dec), x)


def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """Acts scattered into (N, M), and a matmul."""
    values, indices = top_k(x, W_enc, b_enc, k)
    acts = torch.zeros(x.shape[0], W_enc.shape[0], dtype=x.dtype, device=x.device).scatter(1, indices, values)
    return F.mse_loss(acts @ W_dec + b_dec, x)


def bag(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """Decoded by `F.embedding_bag`."""
    values, indices = top_k(x, W_enc, b_enc, k)
    return F.mse_loss(F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum") + b_dec, x)


def step(problem: Problem) -> Iterator[Comparison]:
    """Forward and backward; then the same with Adam, whose state all contenders share (a rate of 0 moves nothing)."""
    size = problem.size
    leaves = [t.detach().clone().requires_grad_() for t in (problem.W_enc, problem.b_enc, problem.W_dec, problem.b_dec)]
    whole = problem.dense_bytes

    def gradients(loss: Loss) -> Callable[[], tuple[Tensor, ...]]:
        def run() -> tuple[Tensor, ...]:
            value = loss(problem.x, *leaves, size.k)
            return (value.detach(), *torch.autograd.grad(value, leaves))

        return run

    def summary(found: Any) -> Tensor:
        """Loss and norms of the gradients, all counting alike."""
        return torch.stack([t.float().norm() for t in found]).clamp_min(1e-30).log()

    # PyTorch rounds bfloat16 scores before it selects: other latents win near rank k; with few tokens it shows
    tolerance = (0.02 if problem.dtype == torch.float32 else 0.05) * (10 if problem.dry else 1)
    losses: dict[str, tuple[Loss, int]] = {
        OURS: (ours, 0),
        "torch dense": (dense, 6 * whole),
        "torch dense, compiled": (compiled(dense, problem), 6 * whole),
        "torch embedding_bag decode": (bag, 4 * whole),
    }
    # decode; dvalues and dW_dec together, which read W_dec and write a gradient; dW_enc, which writes the other
    gathers = 3 * gather_bytes(problem) + 3.0 * size.d_sae * size.d * problem.item
    phases = [*least(problem), (0.0, gathers)]
    yield Comparison(
        "step",
        "encode + decode + MSE, all gradients",
        phases,
        {name: Contender(gradients(loss), summary, needs) for name, (loss, needs) in losses.items()},
        tolerance,
    )

    optimiser = torch.optim.Adam(leaves, lr=0.0, fused=True)

    def stepping(loss: Loss) -> Callable[[], Tensor]:
        def run() -> Tensor:
            optimiser.zero_grad()
            value = loss(problem.x, *leaves, size.k)
            value.backward()
            optimiser.step()
            return value.detach()

        return run

    parameters = sum(leaf.numel() for leaf in leaves) * problem.item
    phases = [*phases, (0.0, 7.0 * parameters)]  # gradient, two moments and the parameter read, all but one written
    yield Comparison(
        "step",
        "the same with fused Adam",
        phases,
        {
            name: Contender(stepping(loss), lambda value: value.float(), needs + 3 * parameters)
            for name, (loss, needs) in losses.items()
        },
        tolerance,
    )
