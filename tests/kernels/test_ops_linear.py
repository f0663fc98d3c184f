"""`linear_topk`, `linear_threshold`, `linear_batch_topk`: which pre-acts are kept, and with what values."""

from __future__ import annotations

import math

import pytest
import torch
from support import dense
from support.compare import RMS, assert_close, assert_same, assert_top_k_within, best
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
SIZES = [*cases.SMALL, *cases.EMPTY, cases.ORDINARY]


def inputs(size: cases.Size, dtype: torch.dtype, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """x, W, b; `exact` ones are small integers, whose pre-acts are exact in float32 and full of ties."""
    if exact:
        return (
            cases.integers(size.n, size.d, dtype=dtype, seed=1),
            cases.integers(size.d_sae, size.d, dtype=dtype, seed=2),
            cases.integers(size.d_sae, dtype=dtype, seed=3),
        )
    W, b, _, _ = cases.dictionary(size, dtype)
    return cases.normal(size.n, size.d, dtype=dtype), W, b


def top_k(
    x: Tensor, W: Tensor, b: Tensor | None, k: int, backend: str, relu: bool = True, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    among = cases.everyone() if among is None else among
    return tuple(ops.linear_topk(x, W, b, [k], [relu], [among], backend=backend))


def slots(indices: Tensor, offsets: Tensor) -> list[list[int]]:
    ends = offsets.tolist()
    return [indices[ends[n] : ends[n + 1]].tolist() for n in range(len(ends) - 1)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_topk_follows_the_rule_exactly(backend: str, dtype: torch.dtype, size: cases.Size, bias: bool) -> None:
    x, W, b = inputs(size, dtype, exact=True)
    z = dense.pre_acts(x, W, b if bias else None)
    values, indices = top_k(x, W, b if bias else None, size.k, backend, relu=False)
    assert indices.dtype == torch.int32
    expected = dense.top_k_indices(z, size.k)
    assert [sorted(row) for row in indices.tolist()] == [sorted(row) for row in expected]
    assert_same(values, z.gather(1, indices.long()).to(dtype), signed_zeros=False)
    clipped, _ = top_k(x, W, b if bias else None, size.k, backend)
    assert_same(clipped.sort(1).values, values.relu().sort(1).values, signed_zeros=False)


@pytest.mark.parametrize("size", [*SIZES, cases.Size(130, 64, 4100, 40)], ids=str)
def test_topk_of_ordinary_numbers(backend: str, dtype: torch.dtype, size: cases.Size) -> None:
    x, W, b = inputs(size, dtype)
    z = dense.pre_acts(x, W, b)
    values, indices = top_k(x, W, b, size.k, backend, relu=False)
    assert_top_k_within(indices, z, size.k, slack=1e-5)
    assert_close(values, z.gather(1, indices.long()))


def test_selection_is_made_before_rounding(backend: str) -> None:
    """In bfloat16 all 256 pre-acts round to 1; in float32 the last latent is the largest."""
    W = (torch.arange(256) / 256).to(torch.bfloat16).unsqueeze(1)
    x = torch.full((1, 1), 2**-9, dtype=torch.bfloat16)
    b = torch.ones(256, dtype=torch.bfloat16)
    values, indices = top_k(x, W, b, 3, backend)
    assert sorted(indices[0].tolist()) == [253, 254, 255]
    assert (values == 1).all()


def test_several_selections_share_one_pass(backend: str, dtype: torch.dtype) -> None:
    size = cases.ORDINARY
    x, W, b = inputs(size, dtype, exact=True)
    z = dense.pre_acts(x, W, b)
    mask = cases.some(size.d_sae, 0.3, seed=5)
    few = torch.zeros(size.d_sae, dtype=torch.bool)
    few[[4, 200]] = True
    nobody = torch.zeros(size.d_sae, dtype=torch.bool)
    ks, masks = [7, 20, 28, 5, 3], [cases.everyone(), mask, cases.everyone(), few, nobody]
    out = ops.linear_topk(x, W, b, ks, [False] * 5, masks, backend=backend)
    assert len(out) == 10
    for k, among, values, indices in zip(ks, masks, out[::2], out[1::2], strict=True):
        allowed = among if among.numel() else torch.ones_like(mask)
        real = min(k, int(allowed.sum()))
        expected = dense.top_k_indices(z, real, allowed)
        for n in range(size.n):
            pairs = sorted(zip(indices[n].tolist(), values[n].tolist(), strict=True))
            wanted = [(i, z[n, i].item()) for i in expected[n]] + [(0, 0.0)] * (k - real)
            assert pairs == sorted(wanted)


def test_rows_with_fewer_positives_than_k_end_in_empty_slots(backend: str, dtype: torch.dtype) -> None:
    size = cases.Size(12, 8, 60, 16)
    x, W, b = inputs(size, dtype, exact=True)
    b = b - 14  # few positives, and rows without any
    z = dense.pre_acts(x, W, b)
    assert ((z > 0).sum(1) < size.k).all()
    values, indices = top_k(x, W, b, size.k, backend)
    assert torch.equal(dense.table(values, indices, None, size.d_sae), z.relu())
    assert (values >= 0).all()


@pytest.mark.parametrize("per_latent", [False, True], ids=["scalar", "per-latent"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_threshold_keeps_exactly_what_lies_above(
    backend: str, dtype: torch.dtype, size: cases.Size, per_latent: bool
) -> None:
    x, W, b = inputs(size, dtype, exact=True)
    theta = cases.integers(size.d_sae, low=-2, high=4, seed=8) if per_latent else torch.tensor(2.0)
    z = dense.pre_acts(x, W, b)
    values, indices, offsets = ops.linear_threshold(x, W, b, theta, backend=backend)
    assert (indices.dtype, offsets.dtype) == (torch.int32, torch.int64)
    assert slots(indices, offsets) == [row.nonzero().flatten().tolist() for row in z > theta]
    assert offsets[0] == 0
    rows = dense.row_of_slots(indices, offsets)
    assert_same(values, z[rows, indices.long()].to(dtype), signed_zeros=False)


@pytest.mark.parametrize("theta", [-math.inf, 0.0, 1e9, math.inf])
def test_threshold_from_everything_to_nothing(backend: str, theta: float) -> None:
    x, W, b = inputs(cases.ORDINARY, torch.float32)
    z = dense.pre_acts(x, W, b)
    values, _, offsets = ops.linear_threshold(x, W, b, torch.tensor(theta), backend=backend)
    assert values.numel() == int((z > theta).sum())
    assert offsets[-1] == values.numel()


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "signed"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_batch_topk_follows_the_rule_exactly(backend: str, dtype: torch.dtype, size: cases.Size, relu: bool) -> None:
    """Ties go to the smaller flat position; latents ascend in a row."""
    x, W, b = inputs(size, dtype, exact=True)
    z = dense.pre_acts(x, W, b)
    count = size.k * size.n
    values, indices, offsets = ops.linear_batch_topk(x, W, b, count, relu, backend=backend)
    flat = best(z.flatten().tolist(), count)
    expected: list[list[int]] = [[] for _ in range(size.n)]
    for position in sorted(flat):
        expected[position // size.d_sae].append(position % size.d_sae)
    assert slots(indices, offsets) == expected
    kept = z[dense.row_of_slots(indices, offsets), indices.long()]
    assert_same(values, (kept.relu() if relu else kept).to(dtype), signed_zeros=False)


def test_batch_topk_of_ordinary_numbers(backend: str, dtype: torch.dtype) -> None:
    size = cases.Size(70, 64, 2100, 20)
    x, W, b = inputs(size, dtype)
    z = dense.pre_acts(x, W, b)
    values, indices, offsets = ops.linear_batch_topk(x, W, b, 1400, True, backend=backend)
    flat = (dense.row_of_slots(indices, offsets) * size.d_sae + indices).unsqueeze(0)
    assert_top_k_within(flat.int(), z.reshape(1, -1), 1400, slack=1e-5)
    assert_close(values, z.flatten()[flat[0]].relu())


@pytest.mark.parametrize("count", [0, 1, 37 * 301])
def test_batch_topk_of_none_one_and_all(backend: str, count: int) -> None:
    x, W, b = inputs(cases.ORDINARY, torch.float32, exact=True)
    z = dense.pre_acts(x, W, b)
    values, _, offsets = ops.linear_batch_topk(x, W, b, count, False, backend=backend)
    assert (values.numel(), int(offsets[-1])) == (count, count)
    if count == z.numel():
        assert torch.equal(values.double(), z.flatten())
    if count == 1:
        assert values.item() == z.max()


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_non_finite_pre_acts_rank_as_in_torch_topk(backend: str, dtype: torch.dtype, masked: bool) -> None:
    """Pre-acts given by b alone: NaN first, then +inf … -inf. ReLU leaves NaN a NaN."""
    size = cases.ORDINARY
    z = cases.scores("nan_inf", 1, size.d_sae, dtype)
    x, W = torch.zeros(3, 4, dtype=dtype), torch.zeros(size.d_sae, 4, dtype=dtype)
    allowed = torch.arange(301) % 2 == 0 if masked else None
    for k in (3, 60, 120, 150):
        values, indices = top_k(x, W, z[0], k, backend, relu=False, among=allowed)
        expected = dense.top_k_indices(z, k, allowed)[0]
        for n in range(3):
            assert sorted(indices[n].tolist()) == sorted(expected)
        assert_same(values, z.expand(3, -1).gather(1, indices.long()))
        clipped, where = top_k(x, W, z[0], k, backend, among=allowed)
        assert_same(clipped, z.expand(3, -1).gather(1, where.long()).relu())
    values, indices, offsets = ops.linear_threshold(x, W, z[0], torch.tensor(0.5), backend=backend)
    assert slots(indices, offsets) == [[i for i, v in enumerate(z[0].tolist()) if not v <= 0.5]] * 3
    values, indices, offsets = ops.linear_batch_topk(x, W, z[0], 3 * 40 + 1, True, backend=backend)
    flat = best(z.double().expand(3, -1).flatten().tolist(), 121)
    assert sorted(i + size.d_sae * n for n, row in enumerate(slots(indices, offsets)) for i in row) == sorted(flat)
    assert int(values.isnan().sum()) == min(121, 3 * int(z.isnan().sum()))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_input_stays_in_its_row(backend: str, dtype: torch.dtype, special: float) -> None:
    size = cases.ORDINARY
    x, W, b = inputs(size, dtype)
    clean, clean_indices = top_k(x, W, b, size.k, backend)
    x = x.clone()
    x[5, 3] = special
    values, indices = top_k(x, W, b, size.k, backend)
    others = [n for n in range(size.n) if n != 5]
    assert_same(values[others], clean[others])
    assert_same(indices[others], clean_indices[others])
    z = x[5:6].double() @ W.double().T + b.double()
    expected = dense.top_k_indices(z, size.k)[0]
    assert sorted(indices[5].tolist()) == sorted(expected)
    assert values[5].isfinite().logical_not().all()


def test_topk_values_are_no_worse_than_pytorchs_own(backend: str, dtype: torch.dtype) -> None:
    size = cases.Size(64, 300, 900, 12)
    x, W, b = inputs(size, dtype)
    z = dense.pre_acts(x, W, b)
    values, indices = top_k(x, W, b, size.k, backend, relu=False)
    own = torch.nn.functional.linear(x, W, b).gather(1, indices.long())
    assert_close(values, z.gather(1, indices.long()), own)
    assert RMS[dtype] < 0.01


def test_in_float64_the_reference_runs() -> None:
    size = cases.ORDINARY
    x, W, b = inputs(size, torch.float64)
    z = dense.pre_acts(x, W, b)
    values, indices = top_k(x, W, b, size.k, "", relu=False)
    assert values.dtype == torch.float64
    assert_close(values, z.topk(size.k).values)
    assert_top_k_within(indices, z, size.k, slack=1e-12)
