from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sae_kernels import SparseCodes
from sae_kernels.errors import ShapeError
from sae_kernels.evaluate import EvalBatch
from sae_kernels.evaluate.fidelity import Cosine, Fvu, Mse, RelativeNorm
from sae_kernels.evaluate.moments import Moments
from sae_kernels.evaluate.sparsity import L0, Density

D_SAE = 12


def batches(target: Tensor, reconstruction: Tensor, acts: Tensor | None = None, size: int = 7) -> list[EvalBatch]:
    acts = torch.zeros(len(target), D_SAE) if acts is None else acts
    pieces = zip(target.split(size), reconstruction.split(size), acts.split(size), strict=True)
    return [EvalBatch(t, t, SparseCodes.from_dense(a), r) for t, r, a in pieces]


def figures(metric: type, *tensors: Tensor, size: int = 7) -> dict[str, float]:
    instance = metric()
    for batch in batches(*tensors, size=size):
        instance.update(batch)
    return instance.result()


def dense_fvu(target: Tensor, reconstruction: Tensor) -> float:
    y, r = target.double(), reconstruction.double()
    return float((y - r).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("dtype", "mean"),
    [
        (torch.float32, 0.0),
        (torch.float32, 1e5),
        (torch.float64, 1e6),
        (torch.bfloat16, 0.0),
        (torch.bfloat16, 100.0),
    ],
)
def test_fvu_is_the_dense_formula_whatever_the_mean(dtype: torch.dtype, mean: float, size: int) -> None:
    y = (torch.randn(50, 6, dtype=torch.float64) + mean + torch.arange(6)).to(dtype)
    r = (y + torch.randn(50, 6) / 3).to(dtype)
    found = figures(Fvu, y, r, size=size)
    assert found["fvu"] == pytest.approx(dense_fvu(y, r), rel=1e-9)
    assert found["explained_variance"] == pytest.approx(1 - dense_fvu(y, r), abs=1e-9)


def test_a_constant_bias_counts() -> None:
    """The variant that centres the residual reads 0.75 here."""
    y = torch.randn(400, 5, dtype=torch.float64)
    y -= y.mean(0)
    reconstruction = y / 2 + y.square().sum().div(400 * 5).sqrt()  # residual: half of y, and a bias as large as y
    error = reconstruction - y
    centred = 1 - (error - error.mean(0)).square().sum() / y.square().sum()
    assert float(centred) == pytest.approx(0.75)
    assert figures(Fvu, y, reconstruction)["explained_variance"] == pytest.approx(-0.25)


def test_the_mean_is_the_data_sets_not_the_batchs() -> None:
    """Sorted data: within a batch nearly nothing varies."""
    y = torch.arange(100.0).repeat_interleave(10).unsqueeze(1)
    assert figures(Fvu, y, y + 1, size=10)["fvu"] == pytest.approx(dense_fvu(y, y + 1), rel=1e-12)


def test_predicting_the_mean_leaves_all_variance() -> None:
    y = torch.randn(60, 4, dtype=torch.float64) + 3
    assert figures(Fvu, y, y.mean(0).expand_as(y))["fvu"] == pytest.approx(1)
    assert figures(Fvu, y, y)["fvu"] == 0


def test_moments_merge() -> None:
    moments = Moments()
    rows = torch.randn(31, 3) * 5 + 1000
    for part in rows.split([1, 0, 20, 10]):
        moments.update(part)
    assert moments.count == 31
    torch.testing.assert_close(moments.mean, rows.double().mean(0))
    assert moments.variance() == pytest.approx(float(rows.double().var(0, correction=0).sum()), rel=1e-9)


def test_other_fidelities_are_their_dense_formulas() -> None:
    y, r = torch.randn(40, 6), torch.randn(40, 6)
    a, b = y.double(), r.double()
    assert figures(Mse, y, r)["mse"] == pytest.approx(float((a - b).square().mean()))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert figures(Cosine, y, r)["cosine"] == pytest.approx(float(cosine.mean()))
    relative = b.square().sum(1).mean() / (a * b).sum(1).mean()
    assert figures(RelativeNorm, y, r)["relative_norm"] == pytest.approx(float(relative))
    assert figures(RelativeNorm, y, y / 2)["relative_norm"] == pytest.approx(0.5)


def test_cosine_with_nothing_is_0() -> None:
    y = torch.ones(2, 3)
    assert figures(Cosine, y, torch.tensor([[1.0], [0.0]]).expand(2, 3))["cosine"] == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [Fvu, Mse, Cosine, RelativeNorm, L0, Density])
def test_nothing_seen_is_undefined(metric: type) -> None:
    assert all(math.isnan(value) for key, value in metric().result().items() if key != "dead_window_tokens")
    instance = metric()
    instance.update(batches(torch.zeros(0, 3), torch.zeros(0, 3))[0])
    assert any(math.isnan(value) for value in instance.result().values())


def test_targets_that_do_not_vary_leave_fvu_undefined() -> None:
    assert math.isnan(figures(Fvu, torch.ones(5, 2), torch.zeros(5, 2))["fvu"])


def sparse_acts(n: int) -> Tensor:
    acts = torch.randn(n, D_SAE).relu() * (torch.rand(n, D_SAE) < torch.linspace(0, 0.5, D_SAE))
    acts[:, 3] = 0
    return acts


def test_sparsity_is_the_dense_count() -> None:
    acts = sparse_acts(500)
    nothing = torch.zeros(500, 2)
    assert figures(L0, nothing, nothing, acts)["l0"] == pytest.approx(float((acts != 0).sum(1).double().mean()))
    found = figures(Density, nothing, nothing, acts)
    density = (acts != 0).double().mean(0)
    assert found["dead_fraction"] == pytest.approx(float((density == 0).double().mean()))
    assert found["dead_window_tokens"] == 500
    assert found["dense_fraction"] == pytest.approx(float((density > 0.1).double().mean()))
    histogram = found["density_histogram"]
    edges = torch.tensor(histogram["log10_edges"], dtype=torch.float64)
    assert len(edges) == len(histogram["counts"]) + 1
    logs = density[density > 0].log10()
    expected = [int(((logs >= low) & (logs < high)).sum()) for low, high in itertools.pairwise(edges)]
    assert histogram["counts"] == expected


def test_a_latent_that_always_fires_is_in_the_last_bin() -> None:
    acts = torch.zeros(10, D_SAE)
    acts[:, 0] = 1
    counts = figures(Density, acts, acts, acts)["density_histogram"]["counts"]
    assert counts[-1] == 1
    assert sum(counts) == 1


def test_empty_slots_of_fixed_width_codes_do_not_count() -> None:
    codes = SparseCodes(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2, 0], [0, 0]]).int(), D_SAE)
    batch = EvalBatch(torch.zeros(2, 3), torch.zeros(2, 3), codes, torch.zeros(2, 3))
    l0, density = L0(), Density()
    l0.update(batch)
    density.update(batch)
    assert l0.result() == {"l0": 0.5}
    assert density.result()["dead_fraction"] == pytest.approx(11 / 12)


def test_parts_that_do_not_fit() -> None:
    codes = SparseCodes.from_dense(torch.zeros(4, D_SAE))
    y = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(4, 2\)"):
        EvalBatch(y, y, codes, torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="5 rows of codes"):
        EvalBatch(y, y, SparseCodes.from_dense(torch.zeros(5, D_SAE)), y)
