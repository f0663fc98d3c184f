"""topk alone against `torch.topk(sorted=False)`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sae_kernels as sk
from bench import cases
from bench.conftest import OURS


@pytest.mark.parametrize("kind", ["normal", "ascending"])
def test_top_k(race: Callable, size: cases.Size, dtype: torch.dtype, kind: str) -> None:
    scores = cases.scores(kind, size.n, size.d_sae, dtype)
    if kind == "ascending":
        scores = torch.arange(size.d_sae).to(dtype).expand(size.n, -1).contiguous()

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.topk(scores, size.k, sorted=False)

    ours = sk.topk(scores, size.k)[0].sort().values
    assert torch.equal(ours, plain()[0].sort().values), "other values: there is nothing to time"
    race(f"topk, {kind} scores", {OURS: lambda: sk.topk(scores, size.k), "torch.topk": plain})
