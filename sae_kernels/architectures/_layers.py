"""Coders of several layers, whose activations stand side by side: their number, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..codes import SparseCodes
from ..errors import ConfigError, IndexRangeError
from ._penalty import PenaltyConfig
from ._sums import row_norms


@dataclass(frozen=True)
class LayersConfig(PenaltyConfig):
    """As `PenaltyConfig`; `n_layers` equal parts of d_in are the layers' activations, in the order of the hook
    points.

    A subclass calls `require_equal_parts` last: d_in may be a guess still, and what else is wrong is to be heard of.
    """

    n_layers: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_layers")

    def require_equal_parts(self, *names: str) -> None:
        """ConfigError unless n_layers divides each of the fields."""
        for name in names:
            if (value := getattr(self, name)) % self.n_layers:
                raise ConfigError(f"{name} = {value}, expected a multiple of n_layers = {self.n_layers}")


def norms_by_layer(W_dec: Tensor, n_layers: int) -> Tensor:
    """‖d_i^l‖ of rows that are n_layers parts side by side: (rows, n_layers)."""
    rows, d = W_dec.shape
    return row_norms(W_dec.reshape(rows * n_layers, d // n_layers)).view(rows, n_layers)


def merged(parts: Sequence[SparseCodes], lead: tuple[int, ...]) -> SparseCodes:
    """Ragged codes of the same N rows over blocks of latents, as codes over all blocks side by side: the slots of a row
    stand in the order of the blocks."""
    offsets = [part.offsets for part in parts if part.offsets is not None]
    counts = torch.stack([each.diff() for each in offsets], dim=1)  # (N, blocks): in memory, the order of the result
    ends = counts.flatten().cumsum(0).view(counts.shape)
    places, indices, first = [], [], 0
    for block, (part, own) in enumerate(zip(parts, offsets, strict=True)):
        nnz = len(part.values)
        shift = (ends - counts)[:, block] - own[:-1]
        at = torch.arange(nnz, device=own.device)
        places.append(at + shift.repeat_interleave(counts[:, block], output_size=nnz))
        indices.append(part.indices + first)
        first += part.d_sae
    place, values = torch.cat(places), torch.cat([part.values for part in parts])
    all_offsets = torch.cat([ends.new_zeros(1), ends[:, -1]])
    return SparseCodes(
        torch.zeros_like(values).index_copy(0, place, values),
        torch.empty_like(index := torch.cat(indices)).index_copy_(0, place, index),
        first,
        all_offsets,
        lead,
    )


def split(codes: SparseCodes, blocks: int) -> list[SparseCodes]:
    """Codes over equal blocks of latents, as the ragged codes of each block; of any codes, not only `merged` ones.

    Raises:
        IndexRangeError: an index outside [0, d_sae).
    """
    width = codes.d_sae // blocks
    values, indices, rows = codes.values.flatten(), codes.indices.flatten(), codes.rows()
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= codes.d_sae):
        raise IndexRangeError(f"codes: an index outside [0, {codes.d_sae})")
    block_of, found = indices // width, []
    for block in range(blocks):
        chosen = (block_of == block).nonzero().squeeze(1)
        counts = torch.bincount(rows[chosen], minlength=codes.n_rows)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        found.append(SparseCodes(values.index_select(0, chosen), indices[chosen] - block * width, width, offsets))
    return found
