"""encode(screening="int8") against plain PyTorch and the default, the weights' copies kept: many tokens, and a few.

`--size S`, `L`, `XL`; XL's copies take 1.1 GB (8 bits) and 2.1 GB (bfloat16), for which SAE_KERNELS_SCREEN_CACHE makes
room.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS, check
from sae_kernels.kernels.linear_topk import cpu_int8

CACHE = str(4 << 30)


@pytest.mark.parametrize("tokens", [1, 8, 32, None], ids=["1", "8", "32", "all"])
@torch.no_grad()
def test_top_k(
    race: Callable, size: cases.Size, dtype: torch.dtype, tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_KERNELS_SCREEN_CACHE", CACHE)
    W, b, _, _ = cases.dictionary(size, dtype)
    x = cases.normal(tokens or size.n, size.d, dtype=dtype)
    declined = cpu_int8.why_not(x, W, b, [size.k], [True], [None])
    if declined:
        pytest.skip(declined)

    def ours() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.TopK(size.k), screening="int8")

    def default() -> sk.SparseCodes:
        return sk.encode(x, W, b, sk.TopK(size.k))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.addmm(b, x, W.mT).topk(size.k, sorted=False)
        return values.relu(), indices

    expected = plain()[0].sort().values
    for _ in range(3):  # copies are made at the second call, and used from then on
        check(ours().values.sort().values, expected)
        check(default().values.sort().values, expected)
    group = f"encode TopK of {tokens or size.n}, 8 bits (copies kept)"
    race(group, {OURS: ours, "sae_kernels, the default": default, "torch addmm + topk + relu": plain})
