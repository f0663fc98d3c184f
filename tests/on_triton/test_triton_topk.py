"""`topk` in Triton: every way to take a row, on rows too small for it to be chosen."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.compare import assert_same, assert_top_k_exact

from bench import cases
from sae_kernels.kernels._triton import select
from sae_kernels.kernels._triton.tuning import Config, forced

ops = torch.ops.sae_kernels
PLANS = {
    "at once": Config({"G": 1, "MOST": 8192}),
    "groups": Config({"G": 4, "MOST": 8192}),
    "groups of groups": Config({"G": 4, "MOST": 8}),
    "pairs of pairs": Config({"G": 2, "MOST": 16}),
    "tile by tile": Config({"G": 0, "MOST": 8192}),
}
SMALL_TILES = {
    "topk.maxima": Config({"GROUPS": 8}),
    "topk.general": Config({"TILE": 32, "PART": 64}),
    "topk.alone": Config({"ROWS": 4, "PART": 32}),
    "topk.candidates": Config({"ROWS": 4, "PART": 64}),
}


@pytest.fixture
def _poisoned() -> None:
    """Tensors of 2³¹ elements stay unreal."""


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest):
    with contextlib.ExitStack() as stack:
        for kernel, config in {**SMALL_TILES, "topk": PLANS[request.param]}.items():
            stack.enter_context(forced(kernel, config))
        yield request.param


CASES = [
    (torch.float32, "nan_inf", 75),
    *((dtype, "ties", 7) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
]


@pytest.mark.parametrize(("dtype", "kind", "k"), CASES, ids=str)
@pytest.mark.usefixtures("poison")
def test_every_plan_follows_the_rule(plan: str, dtype: torch.dtype, kind: str, k: int) -> None:
    scores = cases.scores(kind, 5, 75, dtype)
    values, indices = ops.topk(scores, k, backend="triton")
    assert_top_k_exact(values, indices, scores)
    assert (indices.diff(dim=1) > 0).all()
    assert_same(values, scores.gather(1, indices.long()))


@pytest.mark.usefixtures("poison")
def test_zeros_of_either_sign_are_equal(plan: str) -> None:
    scores = torch.full((1, 40), -1.0)
    scores[0, 3::2] = torch.tensor([-0.0, 0.0] * 9 + [-0.0])
    values, indices = ops.topk(scores, 4, backend="triton")
    assert indices.tolist() == [[3, 5, 7, 9]]
    assert values.signbit().tolist() == [[True, False, True, False]]


def test_offsets_beyond_2_to_the_31(plan: str) -> None:
    """Rows 2³⁰ apart, then columns: only the pages read are real."""
    buffer = torch.empty(2**31 + 100, dtype=torch.float16)
    far = buffer.as_strided((3, 40), (2**30, 1))
    far.copy_(cases.normal(3, 40, dtype=torch.float16))
    assert_top_k_exact(*ops.topk(far, 5, backend="triton"), far)
    wide = buffer.as_strided((2, 9), (7, 2**28))
    wide.copy_(cases.normal(2, 9, dtype=torch.float16))
    assert_top_k_exact(*ops.topk(wide, 5, backend="triton"), wide)


@pytest.mark.parametrize("m", [1, 2, 300, 2048, 2049, 9000, 65536, 131072, 10**6, 10**8])
@pytest.mark.parametrize("k", [1, 31, 64, 512, 4096, 5000])
def test_tiles_of_every_size_stay_small(m: int, k: int) -> None:
    if k > m:
        return
    for tiles in (config.tiles for config in select.plans(m, k)):
        g, groups = tiles["G"], m
        if g == 1:
            assert m <= select.MOST
        elif g == 0:
            assert k > select.MOST // 2
        else:
            assert g * k <= select.MOST
            while groups > tiles["MOST"]:
                groups = -(-groups // g)
            assert groups <= select.MOST


def test_a_plan_for_other_sizes_is_not_followed() -> None:
    scores = cases.scores("ties", 1, 20_000)
    with forced("topk", PLANS["at once"]):
        assert_top_k_exact(*ops.topk(scores, 3, backend="triton"), scores)
