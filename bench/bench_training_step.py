"""A training step of a TopK autoencoder, without AuxK, fused Adam: ours against PyTorch, decoding dense and sparse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check


def plain_loss(coder: sk.SparseCoder, x: Tensor, k: int, dense: bool) -> Tensor:
    """The same loss on the same parameters, in PyTorch's own ops."""
    values, indices = F.linear(x - coder.b_dec, coder.W_enc, coder.b_enc).topk(k, sorted=False)
    values = values.relu()
    if dense:
        acts = torch.zeros(x.shape[0], coder.d_sae, dtype=x.dtype).scatter(1, indices, values)
        found = acts @ coder.W_dec + coder.b_dec
    else:
        found = F.embedding_bag(indices, coder.W_dec, per_sample_weights=values, mode="sum") + coder.b_dec
    return (x - found).square().sum() / (x - x.mean(0)).square().sum()


def steps(size: cases.Size) -> dict[str, Callable[[], None]]:
    """Loss, gradients and fused Adam, of the same autoencoder; their first gradients agree."""
    x = cases.normal(size.n, size.d)

    def contender(loss: Callable[[sk.SparseCoder], Tensor]) -> tuple[sk.SparseCoder, Callable[[], None]]:
        coder = sk.create("topk", d_in=size.d, d_sae=size.d_sae, k=size.k, seed=0)
        optimiser = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimiser.zero_grad()
            loss(coder).backward()
            coder.before_step()
            optimiser.step()
            coder.after_step()

        return coder, step

    made = {
        OURS: contender(lambda coder: coder.loss(x).total),
        "torch, dense decode": contender(lambda coder: plain_loss(coder, x, size.k, dense=True)),
        "torch, embedding_bag": contender(lambda coder: plain_loss(coder, x, size.k, dense=False)),
    }
    mine, theirs = made[OURS][0], made["torch, dense decode"][0]
    for loss in (mine.loss(x).total, plain_loss(theirs, x, size.k, dense=False)):
        loss.backward()
    for ours, plain in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert ours.grad is not None
        assert plain.grad is not None
        check(ours.grad, plain.grad)
    return {name: step for name, (_, step) in made.items()}


def test_step(race: Callable, size: cases.Size) -> None:
    race("training step, fp32, fused Adam", steps(size))
