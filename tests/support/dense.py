"""The truth: each op as dense, differentiable float64 arithmetic, apart from the package's reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .compare import best

Codes = tuple[Tensor, Tensor, Tensor | None]


def row_of_slots(indices: Tensor, offsets: Tensor | None) -> Tensor:
    """The row of each flat slot."""
    if offsets is None:
        return torch.tensor([n for n in range(indices.shape[0]) for _ in range(indices.shape[1])], dtype=torch.long)
    ends = offsets.tolist()
    return torch.tensor([n for n in range(len(ends) - 1) for _ in range(ends[n], ends[n + 1])], dtype=torch.long)


def n_rows(indices: Tensor, offsets: Tensor | None) -> int:
    return indices.shape[0] if offsets is None else len(offsets) - 1


def table(values: Tensor, indices: Tensor, offsets: Tensor | None, d_sae: int) -> Tensor:
    """(N, d_sae) float64; an empty slot is not even written, so nothing flows back to it."""
    flat = values.double().flatten()
    live = flat.detach() != 0
    where = (row_of_slots(indices, offsets)[live], indices.flatten().long()[live])
    return torch.zeros(n_rows(indices, offsets), d_sae, dtype=torch.float64).index_put(
        where, flat[live], accumulate=True
    )


def spmm(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor) -> Tensor:
    return table(values, indices, offsets, W.shape[0]) @ W.double()


def spmm_t(values: Tensor, indices: Tensor, offsets: Tensor | None, X: Tensor, d_sae: int) -> Tensor:
    return table(values, indices, offsets, d_sae).T @ X.double()


def sddmm(A: Tensor, B: Tensor, indices: Tensor, offsets: Tensor | None, gate: Tensor | None) -> Tensor:
    product = (A.double() @ B.double().T)[row_of_slots(indices, offsets), indices.flatten().long()].reshape(
        indices.shape
    )
    return product if gate is None else torch.where(gate != 0, product, torch.zeros((), dtype=torch.float64))


def prefix_decode(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> Tensor:
    acts = table(values, indices, offsets, W.shape[0])
    return torch.stack([acts[:, :end] @ W.double()[:end] for end in prefixes])


def pre_acts(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    z = x.double() @ W.double().T
    return z if b is None else z + b.double()


def chosen_acts(z: Tensor, indices: Tensor, offsets: Tensor | None, relu: bool) -> Tensor:
    """The acts at given slots; differentiable in z. A slot at 0 passes nothing on."""
    picked = z[row_of_slots(indices, offsets), indices.flatten().long()].reshape(indices.shape)
    keep = picked.detach() > 0 if relu else picked.detach() != 0
    return torch.where(keep, picked, torch.zeros((), dtype=z.dtype))


def top_k_indices(z: Tensor, k: int, among: Tensor | None = None) -> list[list[int]]:
    """The rule on each row of z, among the latents a mask allows."""
    allowed = list(range(z.shape[1])) if among is None else among.nonzero().flatten().tolist()
    return [[allowed[i] for i in best([row[a] for a in allowed], k)] for row in z.double().tolist()]
