"""Metrics that are a quotient of two sums over tokens, and so come with an interval for nothing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .batch import EvalBatch, ratio
from .bootstrap import ClusterSums, Interval, Resamples


class Quotient:
    """Σ numerator / Σ denominator over all tokens, in float64. A subclass names the figure and says what each token
    adds."""

    figure: ClassVar[str] = ""

    def __init__(self) -> None:
        self.sums = ClusterSums()

    def terms(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of each token, (tokens,) twice."""
        raise NotImplementedError(f"{type(self).__name__} must define terms")

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        numerator, denominator = self.terms(batch)
        self.sums.add(batch.clusters, torch.stack([numerator.double(), denominator.to(numerator.device).double()], 1))

    def result(self) -> dict[str, float]:
        """The figure."""
        numerator, denominator = self.sums.total() or (0.0, 0.0)
        return {self.figure: ratio(numerator, denominator)}

    def intervals(self, resamples: Resamples) -> dict[str, Interval]:
        """Its confidence interval."""
        return resamples.intervals(self.sums.columns(), lambda sums: {self.figure: sums[:, 0] / sums[:, 1]})
