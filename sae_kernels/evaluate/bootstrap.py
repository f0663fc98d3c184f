"""Confidence intervals by the bootstrap over sequences.

The tokens of one text resemble each other, so that a figure from 100,000 of them is less certain than 100,000
independent ones would make it. What is drawn again, with replacement, are therefore whole sequences (runs of
neighbouring tokens where a source has no sequences): every figure is a function of sums over sequences, a resample
weights each sequence by how often it was drawn, and the interval runs between percentiles of the figure over resamples
(B. Efron, 1979; cluster form: A. C. Davison, D. V. Hinkley, 1997, chapter 3.8).

Sequence s belongs to cluster s mod `CLUSTERS`: more sequences than that are drawn in fixed groups, which keeps the sums
small and widens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

CLUSTERS = 512
RUN = 256  # tokens that are drawn together where there are no sequences
LEAST = 8  # with fewer clusters an interval would say more than is known
Interval = tuple[float, float]


class ClusterSums:
    """Σ over the tokens of each cluster of w numbers a token: (CLUSTERS, w) float64."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, cluster: Tensor, rows: Tensor) -> None:
        """cluster (tokens,) int64 below `CLUSTERS`, rows (tokens, w). Products with zeros and ones, since scattered
        additions on a GPU would come in any order."""
        if len(rows) == 0:
            return
        rows = rows.double()
        if self.sums is None:
            self.sums = rows.new_zeros(CLUSTERS, rows.shape[1])
        present, place = cluster.to(rows.device).unique(return_inverse=True)
        self.sums[present] += functional.one_hot(place, len(present)).double().mT @ rows

    def columns(self) -> Tensor:
        """(CLUSTERS, w) on the CPU; no rows where nothing was added."""
        return torch.zeros(0, 0, dtype=torch.float64) if self.sums is None else self.sums.cpu()

    def total(self) -> list[float]:
        """The w sums over all tokens."""
        return [] if self.sums is None else self.sums.sum(0).tolist()


class Resamples:
    """`samples` draws of as many clusters as there are; the same ones for every figure, from a fixed seed.

    `present` bool (CLUSTERS,): the clusters that have tokens.
    """

    def __init__(self, present: Tensor, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        self.present, self.samples, self.confidence = present.cpu(), samples, confidence
        self.clusters = int(present.sum())
        self.weights: Tensor | None = None
        if self.clusters >= LEAST and samples > 0:
            random = torch.Generator().manual_seed(seed)
            drawn = torch.randint(self.clusters, (samples, self.clusters), generator=random)
            self.weights = torch.zeros(samples, self.clusters, dtype=torch.float64)
            self.weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))

    def intervals(self, sums: Tensor, figures: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Interval]:
        """Intervals of figures. `sums` (CLUSTERS, w) of the clusters; `figures` maps sums (samples, w) of resamples to
        figures (samples,). None (an empty dict) where there are too few clusters."""
        if self.weights is None or not len(sums):
            return {}
        resampled = self.weights @ sums.double()[self.present]
        tail = (1 - self.confidence) / 2
        ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        found = {}
        for name, values in figures(resampled).items():
            low, high = (
                values[values.isfinite()].quantile(ends).tolist() if values.isfinite().any() else (float("nan"),) * 2
            )
            found[name] = (low, high)
        return found

    def describe(self, unit: str) -> dict[str, object]:
        """What stands beside the intervals in the results."""
        return {"confidence": self.confidence, "samples": self.samples, "clusters": self.clusters, "unit": unit}
