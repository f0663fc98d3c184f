"""Dense acts that remember the codes they were made from.

Host libraries hand acts around as dense (…, d_sae) tensors, and their users index, edit and sum them. A patched encoder
gives exactly that, an ordinary tensor; but the object also carries its codes, so that a patched decoder need not
look for them. Whatever makes another tensor of it (an operation, a hook that returns something new, `.to`) or writes
into it loses the codes, and the host's own dense path runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..codes import SparseCodes

_CODES = "_sae_kernels_codes"


class _Spread(torch.autograd.Function):
    """Dense acts of codes; the gradient of a value is that of its place."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, codes: SparseCodes) -> Tensor:
        """values: those of `codes`, in their order."""
        flat = codes.indices.flatten().long()
        places = codes.rows() * codes.d_sae + flat
        ctx.save_for_backward(places)
        ctx.shape = values.shape
        out = values.new_zeros(codes.n_rows * codes.d_sae)
        out.index_copy_(0, places, values.flatten())
        return out.view(*codes.lead_shape, codes.d_sae)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gathered."""
        (places,) = ctx.saved_tensors
        return grad.reshape(-1)[places].view(ctx.shape), None


def dense_acts(codes: SparseCodes) -> Tensor:
    """(…, d_sae), differentiable in the codes' values, that `codes_of` knows. No latent stands twice in a row."""
    acts = _Spread.apply(codes.values, codes.detach())
    setattr(acts, _CODES, (codes, acts._version))
    return acts


def codes_of(acts: Tensor) -> SparseCodes | None:
    """The codes of a tensor that `dense_acts` made and nobody wrote into since; None for any other."""
    remembered = getattr(acts, _CODES, None)
    if remembered is None:
        return None
    codes, version = remembered
    return codes if acts._version == version else None
