"""Metrics of how close the reconstruction ŷ comes to the target y. Sums run over all tokens, in float64."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .batch import EvalBatch, ratio
from .bootstrap import ClusterSums, Interval, Resamples
from .moments import Moments
from .quotient import Quotient


class Fvu:
    """FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean of all targets; explained variance = 1 − FVU.

    The residual is not centred: a reconstruction that is off by a constant is that far off. Undefined where
    the targets do not vary. A resample of the bootstrap has its own ȳ."""

    def __init__(self) -> None:
        self.targets = Moments()
        self.centre: Tensor | None = None  # any point near ȳ: sums about it do not cancel
        self.sums = ClusterSums()  # ‖y − ŷ‖², ‖y − c‖², 1, y − c

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        self.targets.update(batch.target64)
        if self.centre is None:
            self.centre = batch.target64.mean(0)
        moved = batch.target64 - self.centre
        ones = torch.ones_like(batch.squared_errors)
        about = torch.stack([batch.squared_errors, moved.square().sum(1), ones], 1)
        self.sums.add(batch.clusters, torch.cat([about, moved], 1))

    def result(self) -> dict[str, float]:
        """`fvu`, `explained_variance`."""
        total = self.sums.total()
        fvu = ratio(total[0] if total else 0.0, self.targets.scatter)
        return {"fvu": fvu, "explained_variance": 1 - fvu}

    def intervals(self, resamples: Resamples) -> dict[str, Interval]:
        """Their confidence intervals: Σ‖y − ȳ‖² = Σ‖y − c‖² − ‖Σ(y − c)‖² / n."""

        def figures(sums: Tensor) -> dict[str, Tensor]:
            error, about, n = sums[:, :3].unbind(1)
            fvu = error / (about - sums[:, 3:].square().sum(1) / n)
            return {"fvu": fvu, "explained_variance": 1 - fvu}

        return resamples.intervals(self.sums.columns(), figures)


class Mse(Quotient):
    """MSE = Σ‖y − ŷ‖² / (tokens · d_out): per token and feature."""

    figure: ClassVar[str] = "mse"

    def terms(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """‖y − ŷ‖² and d_out."""
        errors = batch.squared_errors
        return errors, torch.full_like(errors, batch.target.shape[1])


class Cosine(Quotient):
    """E[cos(y, ŷ)]; a token counts 0 where y or ŷ is 0."""

    figure: ClassVar[str] = "cosine"

    def terms(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """cos(y, ŷ) and 1."""
        cosines = functional.cosine_similarity(batch.target64, batch.reconstruction64, dim=-1)
        return cosines, torch.ones_like(cosines)


class RelativeNorm(Quotient):
    """E‖ŷ‖² / E[y·ŷ]: below 1 the reconstruction is too short for its direction, above 1 too long."""

    figure: ClassVar[str] = "relative_norm"

    def terms(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """‖ŷ‖² and y·ŷ."""
        return batch.reconstruction64.square().sum(1), (batch.target64 * batch.reconstruction64).sum(1)
