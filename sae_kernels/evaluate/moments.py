"""Mean and variance of a stream of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import ratio


class Moments:
    """Count, mean ȳ and scatter Σ‖y − ȳ‖² of rows that come in batches, in float64.

    Each batch is centred on its own mean and merged, (n, ȳ, S) ∪ (n', ȳ', S') → S + S' + ‖ȳ' − ȳ‖² n n' / (n
    + n'). E‖y‖² − ‖ȳ‖² would cancel where the mean is large, which it is in language models."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter = 0.0

    def update(self, rows: Tensor) -> None:
        """Take in rows (n, d)."""
        n = len(rows)
        if n == 0:
            return
        rows = rows.to(torch.float64)
        mean = rows.mean(0)
        self.scatter += float((rows - mean).square().sum())
        if self.mean is None:
            self.count, self.mean = n, mean
            return
        step = mean - self.mean
        total = self.count + n
        self.scatter += float(step.square().sum()) * self.count * n / total
        self.mean = self.mean + step * (n / total)
        self.count = total

    def variance(self) -> float:
        """Σ‖y − ȳ‖² / n: the features' variances added up."""
        return ratio(self.scatter, self.count)
