"""Terms of losses: sums over features or latents, averaged over the tokens of a batch, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codes import SparseCodes
from ._slots import at_slots


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for everything else: what sums and thresholds are kept in."""
    return torch.promote_types(dtype, torch.float32)


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """(1/N) Σ ‖y − ŷ‖²: summed over features, averaged over tokens."""
    dtype = wide(torch.promote_types(reconstruction.dtype, target.dtype))
    return (target.to(dtype) - reconstruction.to(dtype)).square().sum() / max(1, target.shape[0])


def row_norms(W: Tensor) -> Tensor:
    """‖d_i‖ of each row, (d_sae,). A row of zeros gets no gradient from it."""
    return torch.linalg.vector_norm(W, dim=1, dtype=wide(W.dtype))


def l1(codes: SparseCodes, norms: Tensor | None = None) -> Tensor:
    """(1/N) Σ f_i ‖d_i‖ of codes that are not negative; without `norms`, of ‖d_i‖ = 1."""
    values = codes.values.to(wide(codes.values.dtype))
    if norms is not None:
        values = values * at_slots(norms, codes)
    return values.sum() / max(1, codes.n_rows)
