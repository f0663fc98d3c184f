"""`latent_topn` by sorting what was best and what is new together."""

from __future__ import annotations

import torch
from torch import Tensor

from .._reference import active_slots
from .._reference import always as why_not

__all__ = ["run", "why_not"]


def run(
    best_values: Tensor,
    best_tokens: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    first_token: int,
) -> None:
    """See `sae_kernels.kernels.latent_topn`."""
    d_sae, n = best_values.shape
    active, latents, rows = active_slots(values, indices, offsets, d_sae)
    real = ~active.isnan()
    old = torch.arange(d_sae, device=latents.device).repeat_interleave(n)
    value = torch.cat([best_values.flatten(), active[real].to(best_values.dtype)])
    token = torch.cat([best_tokens.flatten(), first_token + rows[real]])
    latent = torch.cat([old, latents[real]])
    late = torch.where(token < 0, torch.iinfo(torch.int64).max, token)  # an unused entry comes after a real −inf
    order = torch.sort(late, stable=True).indices  # least significant key first
    order = order[torch.sort(value[order], stable=True, descending=True).indices]
    order = order[torch.sort(latent[order], stable=True).indices]
    value, token, latent = value[order], token[order], latent[order]
    starts = torch.zeros(d_sae + 1, dtype=torch.int64, device=latent.device)
    starts[1:] = torch.bincount(latent, minlength=d_sae).cumsum(0)
    take = starts[:-1].unsqueeze(1) + torch.arange(
        n, device=latent.device
    )  # each latent has at least its n old entries
    best_values.copy_(value[take])
    best_tokens.copy_(token[take])
