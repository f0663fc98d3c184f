"""How edits change a reconstruction: through the edited latents alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ..architectures import SparseCoder
from ..architectures.transcoder import Transcoder
from ..codes import SparseCodes
from ..errors import IndexRangeError
from ..ops import decode
from .edits import Edit


class Layered(Protocol):
    """A coder each of whose latents reads one layer, and writes to it and those behind it: `clt`."""

    n_layers: int

    def layer_of(self, latent: int) -> int:
        """The layer a latent reads."""
        ...

    def latents(self, layer: int) -> slice:
        """The latents that read a layer."""
        ...

    def encode_layer(self, x: Tensor, layer: int) -> SparseCodes:
        """(tokens, d_in / n_layers) → codes over these."""
        ...

    def decode_layer(self, codes: SparseCodes, layer: int) -> Tensor:
        """Such codes → what they write to that layer and to those behind it, side by side."""
        ...


def reconstruction_delta(coder: SparseCoder, x: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """ŷ(edited codes of x) − ŷ(codes of x), and which tokens the edits change at all.

    Where the decoder is f W_dec + b_dec the difference is Σ_i Δf_i d_i over the edited latents, exact
    however large the rest of the reconstruction is.

    Shapes:
        x: (tokens, d_in) in the coder's dtype
        → (tokens, d_out) in that dtype, (tokens,) bool
    """
    latents = edited_latents(edits, x)
    linear = is_linear(coder)
    codes = coder.encode(x) if reads(edits) or not linear else None
    before = x.new_zeros(len(x), len(latents)) if codes is None else activations_of(codes, latents)
    after = _applied(before, latents, edits)
    changed = (after != before).any(1)
    indices = latents.expand(len(x), -1).contiguous()
    if linear:
        return decode(SparseCodes(after - before, indices, coder.d_sae), coder.W_dec), changed
    assert codes is not None
    edited = with_latents(codes, latents, SparseCodes(after, indices, coder.d_sae))
    return coder.reconstruct(edited, x) - coder.reconstruct(codes, x), changed


def layer_delta(coder: Layered, layer: int, x: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """What edits of latents of one layer add to what these write, to that layer and to those behind it; and which
    tokens they change.

    Shapes:
        x: (tokens, d_in / n_layers), what that layer reads
        → (tokens, Σ of the layers' widths), (tokens,) bool
    """
    latents, first = edited_latents(edits, x), coder.latents(layer).start
    own = latents - first
    before = activations_of(coder.encode_layer(x, layer), own) if reads(edits) else x.new_zeros(len(x), len(own))
    after = _applied(before, latents, edits)
    size = coder.latents(layer).stop - first
    codes = SparseCodes(after - before, own.expand(len(x), -1).contiguous(), size)
    return coder.decode_layer(codes, layer), (after != before).any(1)


def edited_latents(edits: Sequence[Edit], x: Tensor) -> Tensor:
    """Which, each once, ascending: int32, where x is."""
    return torch.tensor(sorted({edit.latent for edit in edits}), dtype=torch.int32, device=x.device)


def reads(edits: Sequence[Edit]) -> bool:
    """Whether what they change depends on activations."""
    return any(edit.reads for edit in edits)


def activations_of(codes: SparseCodes, latents: Tensor) -> Tensor:
    """(rows, len(latents)): activations of distinct latents, int32; 0 where a row lacks them."""
    column = _column(codes, latents)
    found = column >= 0
    rows = codes.rows()[found.flatten()]
    out = codes.values.new_zeros(codes.n_rows, len(latents))
    return out.index_put((rows, column[found].long()), codes.values[found], accumulate=True)


def with_latents(codes: SparseCodes, latents: Tensor, new: SparseCodes) -> SparseCodes:
    """The codes with every slot of `latents` emptied and those of `new`, (rows, e), appended."""
    kept = torch.where(_column(codes, latents) >= 0, torch.zeros_like(codes.values), codes.values)
    if codes.offsets is None:
        flat = codes.with_values(kept).flat()
        pairs = ((flat[0], new.values), (flat[1], new.indices))
        values, indices = (torch.cat(pair, dim=1) for pair in pairs)
        return SparseCodes(values, indices, codes.d_sae)
    n, e = new.values.shape
    extra = e * torch.arange(n + 1, device=kept.device)
    offsets = codes.offsets + extra
    old = torch.arange(len(kept), device=kept.device) + extra[codes.rows()]
    appended = offsets[1:, None] - e + torch.arange(e, device=kept.device)
    values, indices = kept.new_empty(len(kept) + n * e), codes.indices.new_empty(len(kept) + n * e)
    values[old], values[appended] = kept, new.values
    indices[old], indices[appended] = codes.indices, new.indices
    return replace(codes, values=values, indices=indices, offsets=offsets)


def _column(codes: SparseCodes, latents: Tensor) -> Tensor:
    """Place in `latents` of each slot's latent, −1 where it is not among them."""
    if codes.indices.numel() and (int(codes.indices.min()) < 0 or int(codes.indices.max()) >= codes.d_sae):
        raise IndexRangeError(f"codes: an index outside [0, {codes.d_sae})")
    place = torch.full((codes.d_sae,), -1, dtype=torch.int32, device=latents.device)
    place[latents.long()] = torch.arange(len(latents), dtype=torch.int32, device=latents.device)
    return place[codes.indices.long()]


def _applied(before: Tensor, latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Edits of one latent apply in the order given."""
    after = before.clone()
    place = {latent: j for j, latent in enumerate(latents.tolist())}
    for edit in edits:
        after[:, place[edit.latent]] = edit.apply(after[:, place[edit.latent]])
    return after


def is_layered(coder: Any) -> TypeGuard[Layered]:
    """By its class: a coder that hands on what one inside of it has (`token_norm`) is not."""
    return all(hasattr(type(coder), name) for name in ("layer_of", "latents", "encode_layer", "decode_layer"))


def is_linear(coder: SparseCoder) -> bool:
    """Whether a change of codes adds Δf W_dec: true of these methods; of a stranger's, who knows."""
    cls = type(coder)
    known = (SparseCoder.reconstruct, Transcoder.reconstruct)  # the skip cancels
    return cls.decode is SparseCoder.decode and cls.reconstruct in known
