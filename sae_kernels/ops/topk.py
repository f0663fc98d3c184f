"""`topk`: selection alone, in place of `torch.topk(sorted=False)`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ..kernels import OPS
from . import _checks


def topk(scores: Tensor, k: int, *, backend: str = "") -> tuple[Tensor, Tensor]:
    """The k largest of each row; ties to the smaller index, NaN above everything. The order inside a row has no
    meaning.

    Shapes:
        scores (…, M) float32, bfloat16, float16 (float64 on the reference) → values (…, k), indices (…, k) int32.

    Gradients:
        of values to scores (scattered to where they came from).

    Raises:
        ArgumentError: k is no integer in 1 … M. ShapeError, DtypeError, BackendError as elsewhere.
    """
    flat, _, kind = check(scores, k)
    values, indices = OPS["topk"](flat, k, backend=backend, kind=kind)
    if scores.dim() == 2:
        return values, indices
    lead = scores.shape[:-1]
    return values.reshape(*lead, k), indices.reshape(*lead, k)


def check(scores: Tensor, k: int) -> tuple[Tensor, int, torch.dtype | None]:
    """The boundary of a topk: (scores (N, M), k, their `kind`)."""
    kind = scores.dtype if _checks.usual(scores) else None
    if kind is None:
        _checks.floating("topk", scores=scores)
    _checks.positive_integer("k", k)
    if scores.dim() < 1:
        raise ShapeError("topk: scores are 0-d, expected (…, M)")
    if scores.shape[-1] >= 2**31:
        raise ShapeError(f"topk: {scores.shape[-1]} scores a row, indices are int32: expected fewer than 2**31")
    _checks.k_fits("topk", k, scores.shape[-1])
    return _checks.matrix(scores), k, kind
