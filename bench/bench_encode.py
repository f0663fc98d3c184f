"""encode against what one writes in three lines of PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check


@torch.no_grad()
def test_top_k(race: Callable, size: cases.Size, dtype: torch.dtype) -> None:
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(size.n, size.d, dtype=dtype)

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.TopK(size.k))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = F.linear(x, W, b).topk(size.k, sorted=False)
        return values.relu(), indices

    check(ours().values.sort().values, plain()[0].sort().values)  # near-ties at rank k may go either way
    race("encode TopK", {OURS: ours, "torch linear + topk + relu": plain})


@torch.no_grad()
def test_threshold(race: Callable, size: cases.Size, dtype: torch.dtype) -> None:
    """θ at about k latents a token."""
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(size.n, size.d, dtype=dtype)
    theta = F.linear(x[:64], W, b).float().topk(size.k).values[:, -1].mean().item()

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.Threshold(theta))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        z = F.linear(x, W, b)
        where = (z > theta).nonzero(as_tuple=True)
        return z[where], where[1]

    check(ours().values.norm(), plain()[0].norm())
    race("encode Threshold", {OURS: ours, "torch linear + nonzero": plain})


@torch.no_grad()
def test_batch_top_k(race: Callable, size: cases.Size, dtype: torch.dtype) -> None:
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(size.n, size.d, dtype=dtype)

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.BatchTopK(size.k))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = F.linear(x, W, b).flatten().topk(size.k * size.n, sorted=False)
        return values.relu(), indices

    check(ours().values.sort().values, plain()[0].sort().values)
    race("encode BatchTopK", {OURS: ours, "torch linear + topk + relu": plain})
