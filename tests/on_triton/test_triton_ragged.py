"""The ragged selections where their lists are too short, over several chunks, and how much memory they take."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support import dense
from support.compare import assert_same, best
from torch import Tensor

from bench import cases
from sae_kernels.kernels._triton import ragged
from sae_kernels.kernels._triton.ragged_kernels import BINS
from sae_kernels.kernels._triton.tuning import Config, forced
from sae_kernels.kernels.linear_batch_topk import triton as batch_topk
from sae_kernels.kernels.linear_threshold import triton as threshold

ops = torch.ops.sae_kernels
N, D, M = 18, 6, 150
PLANS = {
    "several chunks": Config({"ROWS": 16, "COLS": 64, "ROOM": 160}),
    "lists are pruned": Config({"ROWS": 16, "COLS": 48, "ROOM": 64}),
    "lists are short": Config({"ROWS": 16, "COLS": 64, "ROOM": 32}),
}
PLAN = pytest.mark.parametrize("plan", PLANS)


def inputs(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, W, b with pre-acts that are exact; `skewed`: three rows have most of the large ones."""
    x, W = cases.integers(N, D, dtype=dtype, seed=1), cases.integers(M, D, dtype=dtype, seed=2)
    b = cases.integers(M, dtype=dtype, seed=3)
    if kind == "skewed":
        x[[2, 9, 17]] *= 16
    if kind == "equal":
        x, b = torch.zeros_like(x), torch.ones_like(b)
    if kind == "half equal":
        x[::2] = 0
        b = torch.ones_like(b)
    if kind == "special":
        b[::7], b[3::11], b[4::13] = float("nan"), float("inf"), -float("inf")
    return x, W, b


def check_threshold(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> None:
    z = x.float() @ W.float().mT + (0 if b is None else b.float())
    values, indices, offsets = ops.linear_threshold(x, W, b, theta, backend="triton")
    keep = ~(z <= theta)
    assert indices.tolist() == keep.nonzero()[:, 1].tolist()
    assert offsets.diff().tolist() == keep.sum(1).tolist()
    assert_same(values, z[keep].to(x.dtype), signed_zeros=False)


def check_batch_topk(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> None:
    z = x.float() @ W.float().mT + (0 if b is None else b.float())
    values, indices, offsets = ops.linear_batch_topk(x, W, b, count, relu, backend="triton")
    expected = sorted(best(z.double().flatten().tolist(), count))
    assert (dense.row_of_slots(indices, offsets) * M + indices).tolist() == expected
    kept = z.flatten()[expected]
    assert_same(values, (kept.relu() if relu else kept).to(x.dtype), signed_zeros=False)


@PLAN
@pytest.mark.parametrize("kind", ["ordinary", "skewed", "special"])
def test_threshold(plan: str, kind: str) -> None:
    x, W, b = inputs(kind, torch.bfloat16 if kind == "ordinary" else torch.float32)
    with forced("ragged", PLANS[plan]):
        check_threshold(x, W, b, torch.tensor(6.0))
        check_threshold(x, W, None, cases.integers(M, low=4, high=9, seed=8))


@PLAN
@pytest.mark.parametrize("theta", [-float("inf"), float("nan"), float("inf")])
def test_threshold_of_everything_and_nothing(plan: str, theta: float) -> None:
    with forced("ragged", PLANS[plan]):
        check_threshold(*inputs("ordinary"), torch.tensor(theta))


def test_threshold_with_few_tokens_splits_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "PART", 128)
    x, W = cases.integers(5, 4, seed=1), cases.integers(900, 4, seed=2)
    x[3] *= 9  # whose lists are too short
    for plan in ({"ROWS": 4, "COLS": 512, "ROOM": 160}, {"ROWS": 8, "COLS": 1024, "ROOM": 64}):
        with forced("ragged", Config(plan)):
            assert ragged.parts(plan["ROWS"], plan["COLS"]) > 1
            check_threshold(x, W, None, torch.tensor(7.0))
            check_threshold(x, W, None, torch.tensor(-99.0))


@PLAN
@pytest.mark.parametrize(
    ("kind", "count"), [("ordinary", 300), ("ordinary", 9), ("skewed", 300), ("special", 1001), ("half equal", 1000)]
)
def test_batch_topk(plan: str, kind: str, count: int) -> None:
    x, W, b = inputs(kind, torch.bfloat16 if kind == "skewed" else torch.float32)
    with forced("ragged", PLANS[plan]):
        check_batch_topk(x, W, b, count, relu=kind == "ordinary")


@PLAN
def test_batch_topk_where_all_scores_are_equal(plan: str) -> None:
    """Nothing but the place decides."""
    x, W, b = inputs("equal")
    with forced("ragged", PLANS[plan]):
        check_batch_topk(x, W, b, M * 7 + 11, relu=True)


def test_batch_topk_within_one_bin() -> None:
    """Scores that share their upper 16 bits, some of them all 32."""
    b = 1 + torch.randint(0, 60, (M,), generator=cases.generator(4)) * 2**-23
    x, W = torch.zeros(N, D), torch.zeros(M, D)
    for plan in ("several chunks", "lists are short"):
        with forced("ragged", PLANS[plan]):
            check_batch_topk(x, W, b, 500, relu=False)


def test_a_bound_that_rows_scored_alone_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GEMM of another shape may round down what was just large enough: then everything is scored again."""
    real = batch_topk.alone

    def slightly_less(x: Tensor, *args: object) -> ragged.Again:
        return real(x - 1, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(batch_topk, "alone", slightly_less)
    x, W = torch.ones(N, 1), torch.ones(M, 1)
    x[4] = 8
    with forced("ragged", PLANS["lists are short"]):
        check_batch_topk(x, W, None, 140, relu=False)


def test_both_ways_of_scoring_again_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for module in (threshold, batch_topk):
        for name in ("alone", "everything"):
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, what=(module, name): taken.append(what) or real(*a))
    for kind in ("skewed", "equal"):
        with forced("ragged", PLANS["lists are short"]):
            check_threshold(*inputs(kind), torch.tensor(-0.5 if kind == "equal" else 14.0))
            check_batch_topk(*inputs(kind), 210, relu=False)
    assert taken == [(module, name) for name in ("alone", "everything") for module in (threshold, batch_topk)]


@pytest.mark.parametrize(
    "config",
    [Config({"ROWS": 1, "BLOCK": 64}), Config({"ROWS": 16, "BLOCK": 16}), Config({"ROWS": 4, "BLOCK": 256})],
    ids=str,
)
def test_every_tile(config: Config) -> None:
    x, W, b = inputs("ordinary")
    x, W, b = x[:5], W[:70], b[:70]
    z = x @ W.mT + b
    with contextlib.ExitStack() as stack:
        for kernel in ("ragged.append", "ragged.lists", "ragged.again"):
            stack.enter_context(forced(kernel, config))
        stack.enter_context(forced("ragged", PLANS["lists are short"]))
        check_threshold(x, W, b, torch.tensor(3.0))
        _, indices, offsets = ops.linear_batch_topk(x, W, b, 120, True, backend="triton")
    found = dense.row_of_slots(indices, offsets) * 70 + indices
    assert found.tolist() == sorted(best(z.double().flatten().tolist(), 120))


def test_runs_repeat_bit_for_bit() -> None:
    x, W, b = cases.normal(N, D), cases.normal(M, D, seed=1), cases.normal(M, seed=2)
    with forced("ragged", PLANS["lists are short"]):
        for op, argument in ((ops.linear_threshold, (torch.tensor(0.5),)), (ops.linear_batch_topk, (333, True))):
            runs = [op(x, W, b, *argument, backend="triton") for _ in range(2)]
            for first, second in zip(*runs, strict=True):
                assert_same(first, second)


@pytest.mark.parametrize(
    ("n", "m", "k"), [(8192, 65_536, 64), (16_384, 131_072, 64), (4096, 16_384, 32)], ids=["A", "B", "C"]
)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_memory_beside_the_result(n: int, m: int, k: int, itemsize: int) -> None:
    """At most a tenth of the pre-acts."""
    most = n * m * itemsize // 10
    assert threshold.first_pass_bytes(n, m, itemsize) <= most
    assert batch_topk.first_pass_bytes(n, m, itemsize, n * k) <= most


def test_the_memory_formula_counts_what_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = torch.empty, []

    def noted(*args: object, **options: object) -> Tensor:
        tensor = real(*args, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        sizes.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", noted)
    x, W = cases.normal(40, 3), cases.normal(2000, 3, seed=1)
    values, _, _ = ops.linear_threshold(x, W, None, torch.tensor(6.0), backend="triton")
    small = 40 * 4 + 8 * values.numel() + 4096
    assert abs(sum(sizes) - threshold.first_pass_bytes(40, 2000, 4)) <= small
    sizes.clear()
    ops.linear_batch_topk(x, W, None, 80, True, backend="triton")
    assert abs(sum(sizes) - (batch_topk.first_pass_bytes(40, 2000, 4, 80) - 8 * BINS)) <= 8 * 80 + 4096


def test_no_latents_and_no_tokens() -> None:
    for x, W in ((torch.ones(3, 2), torch.ones(0, 2)), (torch.ones(0, 2), torch.ones(4, 2))):
        for out in (
            ops.linear_threshold(x, W, None, torch.tensor(0.0), backend="triton"),
            ops.linear_batch_topk(x, W, None, 0, True, backend="triton"),
        ):
            assert [part.tolist() for part in out] == [[], [], [0] * (x.shape[0] + 1)]
