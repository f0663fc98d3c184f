"""The loss of the top-k family: FVU of the batch, plus AuxK against dead latents."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..ops import decode


def variance(target: Tensor) -> Tensor:
    """Σ ‖y − ȳ‖² over the batch, float32. A batch that has none (one token, say) is measured against Σ ‖y‖² instead."""
    flat = target.reshape(-1, target.shape[-1]).float()
    energy = flat.pow(2).sum()
    spread = (flat - flat.mean(0)).pow(2).sum()
    return torch.where(spread > 1e-6 * energy, spread, energy).clamp_min(torch.finfo(torch.float32).tiny)


def fvu(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Σ ‖y − ŷ‖² / Σ ‖y − ȳ‖², ȳ the batch's mean."""
    return (target.float() - reconstruction.float()).pow(2).sum() / variance(target)


def fvus(reconstructions: Tensor, target: Tensor) -> Tensor:
    """`fvu` of each of several reconstructions (P, N, d) of one target (N, d): (P,)."""
    return (target.float() - reconstructions.float()).pow(2).flatten(1).sum(1) / variance(target)


def auxk(aux: SparseCodes, W_dec: Tensor, reconstruction: Tensor, target: Tensor) -> Tensor:
    """Σ ‖e − ê‖² / Σ ‖y − ȳ‖²: dead latents fit the residual e = y − ŷ, which gets no gradient; no bias in ê."""
    residual = (target - reconstruction).detach()
    fitted = decode(aux, W_dec)
    return (residual.float() - fitted.float()).pow(2).sum() / variance(target)
