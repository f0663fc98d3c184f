"""What a metric is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ShapeError, describe


@dataclass(frozen=True, eq=False)
class EvalBatch:
    """Some tokens as the coder saw them; row n of everything is one token, special tokens are left out.

    Shapes:
        x: (tokens, d_in), as the source gave it
        target: (tokens, d_out); x itself for an autoencoder
        codes: over (tokens,) rows
        reconstruction: (tokens, d_out), of the target, in the coder's dtype
        cluster: (tokens,) int64, which tokens are drawn together by the bootstrap; None: all of them
    Raises:
        ShapeError: parts that do not fit together.
    """

    x: Tensor
    target: Tensor
    codes: SparseCodes
    reconstruction: Tensor
    cluster: Tensor | None = None

    def __post_init__(self) -> None:
        if self.target.ndim != 2 or self.target.shape != self.reconstruction.shape:
            raise ShapeError(
                f"evaluation: target {describe(self.target)}, "
                f"reconstruction {describe(self.reconstruction)}, expected (tokens, d_out) twice"
            )
        if len(self.x) != len(self) or self.codes.n_rows != len(self):
            raise ShapeError(
                f"evaluation: {len(self)} targets, {len(self.x)} rows of x, {self.codes.n_rows} rows of codes"
            )

    def __len__(self) -> int:
        return len(self.target)

    @cached_property
    def target64(self) -> Tensor:
        """The target in float64, on the coder's device; converted once for all metrics."""
        return self.target.to(self.reconstruction.device, torch.float64)

    @cached_property
    def reconstruction64(self) -> Tensor:
        """The reconstruction in float64."""
        return self.reconstruction.double()

    @cached_property
    def squared_errors(self) -> Tensor:
        """‖y − ŷ‖² of each token, (tokens,) float64."""
        return (self.target64 - self.reconstruction64).square().sum(1)

    @property
    def clusters(self) -> Tensor:
        """`cluster`, all 0 where there is none."""
        return torch.zeros(len(self), dtype=torch.int64) if self.cluster is None else self.cluster


class MetricInstance(Protocol):
    """What `specs.Metric.make()` returns: fed every batch once, asked once.

    With a method `intervals(resamples) -> dict[str, (low, high)]` too, confidence intervals of its figures stand in the
    results (`bootstrap.Resamples.intervals` makes them from sums by cluster).
    """

    def update(self, batch: EvalBatch) -> None:
        """Take in one batch."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Figures by name, as JSON holds them; a figure that is undefined is NaN."""
        ...


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; NaN, undefined, where the denominator is 0."""
    return numerator / denominator if denominator else float("nan")
