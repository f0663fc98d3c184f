"""`transpose`: the codes by latent (CSC), from one stable sort.

Returns latent_offsets int64 (d_sae+1,), order int64 (nnz,) and rows int32 (nnz,): the slots of latent m are
`order[latent_offsets[m]:latent_offsets[m+1]]` as flat positions, ascending, and `rows` holds the row of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel import Op


def _fake(indices: Tensor, offsets: Tensor | None, d_sae: int, backend: str = "") -> tuple[Tensor, Tensor, Tensor]:
    nnz = indices.numel()
    latent_offsets = indices.new_empty((d_sae + 1,), dtype=torch.int64)
    return latent_offsets, indices.new_empty((nnz,), dtype=torch.int64), indices.new_empty((nnz,))


OP = Op(
    "transpose",
    '(Tensor indices, Tensor? offsets, SymInt d_sae, *, str backend="") -> (Tensor, Tensor, Tensor)',
    _fake,
).register()
