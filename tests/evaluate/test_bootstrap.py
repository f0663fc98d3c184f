"""Intervals: what the bootstrap should give where theory knows the answer, and that they cover what they should."""

from __future__ import annotations

import math

import pytest
import torch
from support.runs import Rows
from support.tiny_lm import tiny_source

import sae_kernels as sk
from sae_kernels.errors import ArgumentError
from sae_kernels.evaluate import EvalBatch, evaluate
from sae_kernels.evaluate.bootstrap import CLUSTERS, ClusterSums, Resamples
from sae_kernels.evaluate.fidelity import Fvu, Mse


def everyone(n: int) -> torch.Tensor:
    return torch.arange(CLUSTERS) < n


def batch(y: torch.Tensor, reconstruction: torch.Tensor, cluster: torch.Tensor) -> EvalBatch:
    return EvalBatch(y, y, sk.SparseCodes.from_dense(torch.zeros(len(y), 4)), reconstruction, cluster)


def test_sums_by_cluster_over_batches() -> None:
    cluster, rows = torch.randint(0, 9, (50,)), torch.randn(50, 3, dtype=torch.float64)
    sums = ClusterSums()
    for part in torch.arange(50).split(7):
        sums.add(cluster[part], rows[part])
    expected = torch.zeros(CLUSTERS, 3, dtype=torch.float64).index_add_(0, cluster, rows)
    torch.testing.assert_close(sums.columns(), expected)
    assert sums.total() == pytest.approx(rows.sum(0).tolist())


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    """Mean of n independent clusters: ± 1.96 standard errors."""
    n = 300
    values = torch.randn(n, 1, dtype=torch.float64) * 3 + 5
    sums = torch.zeros(CLUSTERS, 2, dtype=torch.float64)
    sums[:n, :1], sums[:n, 1] = values, 1
    low, high = Resamples(everyone(n), 4000).intervals(sums, lambda s: {"mean": s[:, 0] / s[:, 1]})["mean"]
    half = 1.96 * float(values.std()) / math.sqrt(n)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (high + low) / 2 == pytest.approx(float(values.mean()), abs=half / 4)


def test_tokens_that_resemble_each_other_make_it_wider() -> None:
    """One error a sequence of 50 tokens: the interval is √50 times that of 50 times as many sequences."""
    widths = {}
    for length in (1, 50):
        error = torch.rand(40).repeat_interleave(length)
        y = torch.randn(len(error), 3)
        metric = Mse()
        metric.update(batch(y, y + error[:, None], torch.arange(40).repeat_interleave(length)))
        low, high = metric.intervals(Resamples(everyone(40)))["mse"]
        widths[length] = high - low
    assert widths[50] == pytest.approx(widths[1], rel=0.5), "more tokens of the same sequences are no more certain"


def test_fvu_resamples_have_their_own_mean() -> None:
    """Against resampling the tokens themselves, the dense way."""
    n, length = 20, 6
    y = torch.randn(n * length, 4, dtype=torch.float64) + torch.randn(n, 4).repeat_interleave(length, 0) * 3 + 100
    r = y + torch.randn_like(y) * torch.rand(n).repeat_interleave(length)[:, None]
    metric = Fvu()
    for part in torch.arange(n * length).split(17):
        metric.update(batch(y[part], r[part], part // length))
    resamples = Resamples(everyone(n), 50)
    found = metric.intervals(resamples)["fvu"]
    assert resamples.weights is not None
    fvus = []
    for weights in resamples.weights.long():
        rows = torch.cat([torch.arange(length) + c * length for c in range(n) for _ in range(int(weights[c]))])
        a, b = y[rows], r[rows]
        fvus.append((a - b).square().sum() / (a - a.mean(0)).square().sum())
    ends = torch.stack(fvus).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert found == pytest.approx(ends.tolist(), rel=1e-8)


def test_ninety_five_per_cent_cover() -> None:
    """The truth is inside for about 95 of 100 data sets."""
    random, inside = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        sums = torch.zeros(CLUSTERS, 2, dtype=torch.float64)
        sums[:60, 0] = torch.randn(60, generator=random, dtype=torch.float64).exp()
        sums[:60, 1] = 1
        low, high = Resamples(everyone(60), 400).intervals(sums, lambda s: {"m": s[:, 0] / s[:, 1]})["m"]
        inside += low <= math.exp(0.5) <= high
    assert 0.85 < inside / 200 < 0.99


def test_in_an_evaluation() -> None:
    sae = sk.create("topk", d_in=16, d_sae=64, k=4, seed=0)
    source = tiny_source()
    found = evaluate(sae, source)
    sequences = len(source.sequences)
    if sequences < 8:
        assert "intervals" not in found
    rows = Rows(torch.randn(35 * 256, 16), lengths=[10 * 256, 0, 25 * 256])
    found = evaluate(sae, rows, max_tokens=None, batch_tokens=1000)
    assert found["bootstrap"] == {"confidence": 0.95, "samples": 1000, "clusters": 35, "unit": "runs of 256 tokens"}
    for figure in ("fvu", "mse", "cosine", "relative_norm", "l0", "explained_variance"):
        low, high = found["intervals"][figure]
        assert low <= found["metrics"][figure] <= high
        assert low < high or figure == "l0"
    again = evaluate(sae, rows, max_tokens=None, batch_tokens=777)["intervals"]
    for figure, interval in found["intervals"].items():
        assert again[figure] == pytest.approx(interval, rel=1e-9), "the size of a batch changes nothing"
    assert "intervals" not in evaluate(sae, rows, max_tokens=None, bootstrap=0)
    assert "intervals" not in evaluate(sae, rows, max_tokens=7 * 256)
    with pytest.raises(ArgumentError, match="bootstrap = -1"):
        evaluate(sae, rows, bootstrap=-1)
