"""Numbers that latents have, at the slots of codes; and sums over each latent's slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import settings
from ..codes import SparseCodes
from ..kernels import OPS


def at_slots(vector: Tensor, codes: SparseCodes) -> Tensor:
    """vector[indices]: the number of each slot's latent.

    Shapes:
        vector (d_sae,) → the shape of `codes.indices`, in vector's dtype.

    Gradients:
        to `vector`: `latent_sums`, which has one order of summation, where that of indexing has none on a GPU.
    """
    return _AtSlots.apply(vector, codes.indices, codes.offsets, codes.n_rows, settings.chosen_backend())


def latent_sums(
    values: Tensor, indices: Tensor, offsets: Tensor | None, n: int, d_sae: int, backend: str = ""
) -> Tensor:
    """Σ of the values whose slot is latent i: (d_sae,), in their dtype; the same from run to run, for any number of
    threads. `n` rows."""
    if values.device.type == "cpu":  # one loop in the order of slots; faster than the product below
        return values.new_zeros(d_sae).index_add_(0, indices.flatten(), values.flatten())
    ones = values.new_ones(n, 1)
    return OPS["spmm_t"](values, indices, offsets, ones, d_sae, backend=backend).squeeze(1)


class _AtSlots(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, vector: Tensor, indices: Tensor, offsets: Tensor | None, n: int, backend: str
    ) -> Tensor:
        ctx.save_for_backward(indices, offsets)
        ctx.rest = n, vector.shape[0], backend
        return vector.index_select(0, indices.flatten()).reshape(indices.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return latent_sums(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None
