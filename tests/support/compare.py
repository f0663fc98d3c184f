"""Errors as ratios to a float64 truth, and top-k comparisons that ties cannot fool."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RMS = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 6e-4,
    torch.bfloat16: 5e-3,
}  # rms(error)/rms(truth)


def rms_ratio(found: Tensor, truth: Tensor) -> float:
    """rms(found - truth) / rms(truth), in float64."""
    truth = truth.double()
    scale = truth.square().mean().sqrt().item() if truth.numel() else 0.0
    error = (found.double() - truth).square().mean().sqrt().item() if truth.numel() else 0.0
    return error / scale if scale > 0 else error


def assert_close(found: Tensor, truth: Tensor, own: Tensor | None = None, factor: float = 1.0) -> None:
    """`found` is the float64 `truth` up to its dtype: small in rms, and, given PyTorch's `own` result in that dtype,
    nowhere more than twice as far off as that is (or a unit in the last place of the largest value)."""
    assert found.shape == truth.shape, f"shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    assert truth.isfinite().all(), "the truth itself is not finite: compare with assert_same"
    assert found.isfinite().all(), "not finite"
    ratio = rms_ratio(found, truth)
    assert ratio <= factor * RMS[found.dtype], (
        f"rms(error)/rms(truth) = {ratio:.2e}, allowed {factor * RMS[found.dtype]:.0e}"
    )
    if own is not None and truth.numel():
        assert own.dtype == found.dtype
        allowed = 2 * (own.double() - truth).abs().max().item()
        allowed = max(allowed, torch.finfo(found.dtype).eps * truth.abs().max().item())
        worst = (found.double() - truth).abs().max().item()
        assert worst <= allowed, f"max error {worst:.2e}, PyTorch's own allows {allowed:.2e}"


def assert_same(found: Tensor, expected: Tensor, signed_zeros: bool = True) -> None:
    """Bit for bit, except that one NaN is as good as another (and, without `signed_zeros`, -0 as +0)."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"dtype {found.dtype}, expected {expected.dtype}"
    if found.is_floating_point():
        nan = found.isnan()
        assert torch.equal(nan, expected.isnan()), "NaN in other places"
        found, expected = found.masked_fill(nan, 0), expected.masked_fill(nan, 0)
        assert not signed_zeros or torch.equal(found.signbit(), expected.signbit()), "other signs"
    assert torch.equal(found, expected), f"differ in {int((found != expected).sum())} of {found.numel()} places"


def best(row: list[float], k: int) -> list[int]:
    """The indices of the k best scores by the rule: NaN first, then descending, ties to the smaller index."""
    return sorted(range(len(row)), key=lambda i: (0, 0.0, i) if math.isnan(row[i]) else (1, -row[i], i))[:k]


def assert_top_k_exact(values: Tensor, indices: Tensor, scores: Tensor) -> None:
    """Each row holds exactly the k indices the rule names, each once, with the scores found there."""
    assert indices.dtype == torch.int32
    assert values.shape == indices.shape
    k = indices.shape[1]
    for n, row in enumerate(scores.double().tolist()):
        assert sorted(indices[n].tolist()) == sorted(best(row, k)), f"row {n}: another set of latents"
    assert_gathered(values, indices, scores)


def assert_gathered(values: Tensor, indices: Tensor, scores: Tensor) -> None:
    """The values are the scores at the returned indices."""
    gathered = scores.gather(1, indices.long())
    assert torch.equal(values.isnan(), gathered.isnan()), "NaN in other places"
    real = ~values.isnan()
    assert torch.equal(values[real], gathered[real]), "values are not the scores at the returned indices"


def assert_top_k_within(indices: Tensor, truth: Tensor, k: int, slack: float) -> None:
    """No index twice in a row, and none whose true score lies more than `slack` below the true k-th."""
    assert indices.dtype == torch.int32
    assert indices.shape == (truth.shape[0], k)
    if truth.shape[0] == 0:
        return
    ordered = indices.sort(dim=1).values
    assert not (ordered.diff(dim=1) == 0).any(), "an index stands twice in a row"
    kth = truth.topk(k, dim=1).values[:, -1:]
    chosen = truth.gather(1, indices.long())
    assert (chosen >= kth - slack).all(), f"a chosen score is {float((kth - chosen).max()):.2e} below the k-th"
