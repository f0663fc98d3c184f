"""One, 8 and 32 tokens, as in steering and generation: weights that stay what they are, so that a copy of them is kept.

`--size S`, `L`, `XL` give d, d_sae and k; XL's copy takes 2 GB, for which SAE_KERNELS_SCREEN_CACHE makes room here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check

TOKENS = pytest.mark.parametrize("tokens", [1, 8, 32])
CACHE = str(4 << 30)


@pytest.fixture(params=["auto", "off"], ids=["copy kept", "no copy"])
def screening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the copy, which is made at the second call, and reading W itself."""
    monkeypatch.setenv("SAE_KERNELS_SCREENING", request.param)
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", CACHE)
    return request.param


@TOKENS
@torch.no_grad()
def test_top_k(race: Callable, size: cases.Size, dtype: torch.dtype, screening: str, tokens: int) -> None:
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(tokens, size.d, dtype=dtype)

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.TopK(size.k))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.addmm(b, x, W.mT).topk(size.k, sorted=False)
        return values.relu(), indices

    for _ in range(3):
        check(ours().values.sort().values, plain()[0].sort().values)
    kind = "copy kept" if screening == "auto" else "no copy"
    race(f"encode TopK of {tokens} ({kind})", {OURS: ours, "torch addmm + topk + relu": plain})


@TOKENS
@torch.no_grad()
def test_threshold(race: Callable, size: cases.Size, dtype: torch.dtype, screening: str, tokens: int) -> None:
    """θ at about k latents a token."""
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(tokens, size.d, dtype=dtype)
    theta = F.linear(x, W, b).float().topk(size.k).values[:, -1].mean().item()

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.Threshold(theta))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.addmm(b, x, W.mT)
        where = (z > theta).nonzero(as_tuple=True)
        return z[where], where[1]

    for _ in range(3):
        check(ours().values.norm(), plain()[0].norm())
    kind = "copy kept" if screening == "auto" else "no copy"
    race(f"encode Threshold of {tokens} ({kind})", {OURS: ours, "torch addmm + nonzero": plain})
