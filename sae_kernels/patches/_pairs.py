"""Acts and penalties that a host computes for each pair of token and latent, without a tensor of all pairs.

`Elementwise` is the host's arithmetic between its encoder and its decoder: from z = x W_enc + b of some pairs, and what
their latents have (norms, thresholds), to acts and to terms of a loss. `at_slots` runs it at the slots of codes alone,
`in_chunks` on all pairs, some latents at a time, and in the backward again: a product more than the host makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..architectures._slots import at_slots as vector_at_slots
from ..architectures._sums import wide
from ..codes import SparseCodes
from ._all_slots import decode_codes_all_slots

# (z, what the latents have, …) → (acts, …), (terms, …), each in the shape of z; a vector has z's last axis
Elementwise = Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
CHUNK = 4 << 20  # pairs of token and latent at a time: 16 MiB in float32


class AtSlots(NamedTuple):
    """What a loss is made of, from codes."""

    acts: tuple[SparseCodes, ...]  # in the slots that the codes have
    decoded: tuple[Tensor, ...]  # acts W_dec of each of them, (N, d_out)
    terms: tuple[Tensor, ...]  # of each of the terms, Σ over latents (N,), in float32 or float64


class InChunks(NamedTuple):
    """The same from all pairs, and what is counted on the way."""

    decoded: tuple[Tensor, ...]
    terms: tuple[Tensor, ...]
    fired: Tensor  # (d_sae,) float32: how many tokens the first acts are not 0 for
    l0: Tensor  # (N,) float32: how many latents


def at_slots(elementwise: Elementwise, codes: SparseCodes, W_dec: Tensor | None, vectors: Sequence[Tensor]) -> AtSlots:
    """`codes`: z of every pair that matters, ragged; W_dec may be None, where nothing is to be decoded.

    Gradients:
        to z, W_dec and the vectors, those of the arithmetic, also in slots whose act is 0.
    """
    dtype = wide(codes.values.dtype)
    given = [vector_at_slots(vector.to(dtype), codes) for vector in vectors]
    acts, terms = elementwise(codes.values.to(dtype)[None], *given)
    made = tuple(codes.with_values(act[0].to(codes.values.dtype)) for act in acts)
    decoded = () if W_dec is None else tuple(decode_codes_all_slots(each, W_dec) for each in made)
    rows = codes.rows()
    sums = tuple(term.new_zeros(codes.n_rows).index_add(0, rows, term[0]) for term in terms)
    return AtSlots(made, decoded, sums)


def in_chunks(
    elementwise: Elementwise, x: Tensor, W_enc: Tensor, b: Tensor, W_dec: Tensor | None, vectors: Sequence[Tensor]
) -> InChunks:
    """Over all pairs; x (N, d_in), W_enc (d_in, d_sae), W_dec (d_sae, d_out), or None, where only terms are wanted.

    Gradients:
        to all tensors, as the arithmetic's own backward has them.

    Memory: about ten numbers for each pair of a chunk, and nothing from forward to backward.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, W_enc, W_dec = x.to(dtype), W_enc.to(dtype), None if W_dec is None else W_dec.to(dtype)
    with torch.no_grad():
        probe = _run(elementwise, x[:1], W_enc[:, :1], b[:1], [vector[:1] for vector in vectors])
    counts = 0 if W_dec is None else len(probe[0]), len(probe[1])
    out = _InChunks.apply(elementwise, counts, x, W_enc, b, W_dec, *vectors)
    return InChunks(out[: counts[0]], out[counts[0] : -2], out[-2], out[-1])


def _run(elementwise: Elementwise, x: Tensor, W_enc: Tensor, b: Tensor, vectors: Sequence[Tensor]) -> Any:
    z = _pre_acts(x, W_enc, b)
    return elementwise(z, *(vector.to(z.dtype) for vector in vectors))


def _pre_acts(x: Tensor, W_enc: Tensor, b: Tensor) -> Tensor:
    """As the host has them: inside autocast of b's dtype."""
    return torch.mm(x, W_enc).to(torch.promote_types(x.dtype, b.dtype)).add_(b)


def _chunks(n: int, d_sae: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, n))
    for first in range(0, d_sae, step):
        yield slice(first, min(d_sae, first + step))


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        elementwise: Elementwise,
        counts: tuple[int, int],
        x: Tensor,
        W_enc: Tensor,
        b: Tensor,
        W_dec: Tensor | None,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        """decoded, terms, fired, l0."""
        ctx.save_for_backward(x, W_enc, b, W_dec, *vectors)
        ctx.elementwise, ctx.counts = elementwise, counts
        n, dtype = len(x), wide(x.dtype)
        decoded = [x.new_zeros(n, W_dec.shape[1], dtype=dtype) for _ in range(counts[0])] if W_dec is not None else []
        terms = [x.new_zeros(n, dtype=dtype) for _ in range(counts[1])]
        fired, l0 = x.new_zeros(W_enc.shape[1], dtype=torch.float32), x.new_zeros(n, dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(n, W_enc.shape[1]):
                acts, more = _run(elementwise, x, W_enc[:, part], b[part], [vector[part] for vector in vectors])
                for total, act in zip(decoded, acts, strict=False):
                    assert W_dec is not None
                    _add_product(total, act.to(x.dtype), W_dec[part])
                for total, term in zip(terms, more, strict=True):
                    total += term.sum(1, dtype=dtype)
                if decoded:
                    active = (acts[0] != 0).float()
                    fired[part] = active.sum(0)
                    l0 += active.sum(1)
        ctx.mark_non_differentiable(fired, l0)
        return *(total.to(x.dtype) for total in decoded), *terms, fired, l0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each chunk's z again, and its part of every gradient."""
        x, W_enc, b, W_dec, *vectors = ctx.saved_tensors
        d_decoded, d_terms = grads[: ctx.counts[0]], grads[ctx.counts[0] : -2]
        wanted = ctx.needs_input_grad[2:]
        dtype = wide(x.dtype)
        dx = torch.zeros_like(x, dtype=dtype) if wanted[0] else None
        others = [
            torch.empty_like(each) if want else None
            for want, each in zip(wanted[1:], (W_enc, b, W_dec, *vectors), strict=True)
        ]
        dW_enc, db, dW_dec, *d_vectors = others
        with torch.autocast(x.device.type, enabled=False):
            for part in _chunks(len(x), W_enc.shape[1]):
                W = W_enc[:, part]
                z = _pre_acts(x, W, b[part])
                inputs = [each.detach().requires_grad_() for each in (z, *(v[part].to(z.dtype) for v in vectors))]
                with torch.enable_grad():
                    acts, terms = ctx.elementwise(*inputs)
                outs, up = [], []
                for i, dy in enumerate(d_decoded):
                    act = acts[i]
                    assert W_dec is not None
                    if dW_dec is not None:
                        dW_dec[part].addmm_(act.detach().to(x.dtype).mT, dy, beta=min(i, 1))
                    if act.requires_grad:
                        outs.append(act)
                        up.append(torch.mm(dy, W_dec[part].mT).to(act.dtype))
                for term, d in zip(terms, d_terms, strict=True):
                    if term.requires_grad:
                        outs.append(term)
                        up.append(d[:, None].to(term.dtype).expand_as(term))
                dz, *found = torch.autograd.grad(outs, inputs, up, materialize_grads=True)
                for total, grad in zip(d_vectors, found, strict=True):
                    if total is not None:
                        total[part] = grad
                if db is not None:
                    db[part] = dz.sum(0)
                dz = dz.to(x.dtype)
                if dW_enc is not None:
                    torch.mm(x.mT, dz, out=dW_enc[:, part])
                if dx is not None:
                    _add_product(dx, dz, W.mT)
        return None, None, None if dx is None else dx.to(x.dtype), *others


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b)
