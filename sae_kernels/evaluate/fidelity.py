"""Metrics of how close the reconstruction ŷ comes to the target y. Sums run over all tokens, in float64."""

from __future__ import annotations

from torch.nn import functional

from .batch import EvalBatch, ratio
from .moments import Moments


class Fvu:
    """FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖², ȳ the mean of all targets; explained variance = 1 − FVU.

    The residual is not centred: a reconstruction that is off by a constant is that far off. Undefined where
    the targets do not vary."""

    def __init__(self) -> None:
        self.error = 0.0
        self.targets = Moments()

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        self.error += batch.squared_error
        self.targets.update(batch.target64)

    def result(self) -> dict[str, float]:
        """`fvu`, `explained_variance`."""
        fvu = ratio(self.error, self.targets.scatter)
        return {"fvu": fvu, "explained_variance": 1 - fvu}


class Mse:
    """MSE = Σ‖y − ŷ‖² / (tokens · d_out): per token and feature."""

    def __init__(self) -> None:
        self.error, self.elements = 0.0, 0

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        self.error += batch.squared_error
        self.elements += batch.target.numel()

    def result(self) -> dict[str, float]:
        """`mse`."""
        return {"mse": ratio(self.error, self.elements)}


class Cosine:
    """E[cos(y, ŷ)]; a token counts 0 where y or ŷ is 0."""

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        self.total += float(functional.cosine_similarity(batch.target64, batch.reconstruction64, dim=-1).sum())
        self.tokens += len(batch)

    def result(self) -> dict[str, float]:
        """`cosine`."""
        return {"cosine": ratio(self.total, self.tokens)}


class RelativeNorm:
    """E‖ŷ‖² / E[y·ŷ]: below 1 the reconstruction is too short for its direction, above 1 too long."""

    def __init__(self) -> None:
        self.norm, self.dot = 0.0, 0.0

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        self.norm += float(batch.reconstruction64.square().sum())
        self.dot += float((batch.target64 * batch.reconstruction64).sum())

    def result(self) -> dict[str, float]:
        """`relative_norm`."""
        return {"relative_norm": ratio(self.norm, self.dot)}
