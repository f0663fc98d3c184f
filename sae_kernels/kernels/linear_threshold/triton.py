"""`linear_threshold` in Triton: the vendor's GEMM by chunks, what lies above θ appended to lists, lists put into CSR.

One device-to-host read, of (nnz, rows whose list was too short): the size of the result depends on the data, and
somebody must know it to allocate. Where a list was too short there is a second one, of nnz, after those rows were
counted again.

Every score is computed once, except for rows with far more latents than others (about M/128 in 16 bits): those few
rows are scored twice more, alone; or, where they are more than a quarter of the batch, everything is scored once more.
Memory beside the result: at most 10 % of the (N, M) tensor at sizes worth the name, `first_pass_bytes`.

*Precision*: as in `linear_topk`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._pre_acts import check
from .._triton import ragged_kernels, same_dtype
from .._triton.inputs import cdiv, flat, launches
from .._triton.ragged import (
    ALONE,
    ENTRY,
    LEAST_ROOM,
    Again,
    Lists,
    Rule,
    alone,
    config,
    counted,
    everything,
    fill,
    offsets_of,
    parts,
    plan,
    read,
)
from .._triton.scores import Scores


def why_not(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> str | None:
    """None, or why the Triton kernel declines."""
    return same_dtype(x, W, b)


def first_pass_bytes(n: int, m: int, itemsize: int) -> int:
    """Memory of scores and lists."""
    tiles = plan(n, m, itemsize).tiles
    per_row, _, room = _split(tiles["ROWS"], tiles["COLS"], m, tiles["ROOM"])
    return 4 * tiles["ROWS"] * tiles["COLS"] + n * per_row * (ENTRY * room + 4)


def _split(rows: int, cols: int, m: int, room: int) -> tuple[int, int, int]:
    """(lists of a row, latents of a part, room of a list). Rows that are not split have one list for all chunks."""
    pieces = parts(rows, cols)
    if pieces == 1:
        return 1, cols, room
    per_row = cdiv(m, cols) * pieces
    return per_row, cdiv(cdiv(cols, pieces), 128) * 128, min(room, max(LEAST_ROOM, cdiv(room // per_row, 32) * 32))


@launches
def run(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_threshold`."""
    check(x, W, b, theta=theta if theta.dim() else None)
    n, m, device = x.shape[0], W.shape[0], x.device
    if n * m == 0:
        return x.new_empty(0), torch.empty(0, dtype=torch.int32, device=device), offsets_of(x.new_zeros(n).long())
    bias = None if b is None else flat(b, "b", x.dtype)
    rule = Rule(flat(theta.float(), "theta", torch.float32), None)
    tiles = plan(n, m, x.itemsize).tiles
    scores = Scores(x, W, tiles["ROWS"], tiles["COLS"])
    lists = _listed(scores, bias, rule, tiles["ROOM"])
    short = lists.short()
    lengths = lists.counts.view(n, -1).sum(1)
    offsets = offsets_of(lengths)
    nnz, shorts = read(offsets[-1], short.sum())
    if shorts == 0:
        return *_filled(x, lists, None, None, rule, offsets, nnz), offsets
    if ALONE * shorts > n:
        return *_filled(x, None, None, everything(x, partial(_chunks, scores), bias), rule, offsets, nnz), offsets
    del scores
    again = alone(x, W, bias, short, shorts)
    counts, _ = counted(None, again, rule, n)
    offsets = offsets_of(torch.where(short, counts, lengths))
    return *_filled(x, lists, short, again, rule, offsets, *read(offsets[-1])), offsets


def _chunks(scores: Scores) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, first latent, scores): all latents of some tokens, then the next tokens."""
    for row, rows in scores.tokens():
        for first, chunk in scores.latents(row, rows):
            yield row, first, chunk


def _listed(scores: Scores, bias: Tensor | None, rule: Rule, room: int) -> Lists:
    """The first pass."""
    per_row, width, room = _split(scores.rows, scores.cols, scores.m, room)
    lists, choice = Lists(scores.n, per_row, room, scores.x.device), config("append", width)
    meta: dict[str, Any] = {"BIAS": bias is not None, "THETA": rule.kind, **choice.meta}
    for row, first, chunk in _chunks(scores):
        rows, cols = chunk.shape
        pieces = 1 if per_row == 1 else cdiv(cols, width)
        part = 0 if per_row == 1 else first // scores.cols * (per_row // cdiv(scores.m, scores.cols))
        ragged_kernels.keep_above[cdiv(rows, choice.tiles["ROWS"]), pieces](
            chunk, bias, rule.theta, *lists.of(row, rows), rows, first, cols, room, per_row, part, width, **meta
        )
    return lists


def _filled(
    x: Tensor, lists: Lists | None, without: Tensor | None, again: Again | None, rule: Rule, offsets: Tensor, nnz: int
) -> tuple[Tensor, Tensor]:
    """Values and indices. Zeros where rows are written again: if ever a GEMM rounded otherwise when it is repeated, the
    result would hold an empty slot, not something arbitrary."""
    make = torch.empty if again is None else torch.zeros
    out = make(nnz, dtype=x.dtype, device=x.device), make(nnz, dtype=torch.int32, device=x.device)
    fill(None if lists is None else lists.source(without), again, rule, offsets, None, out)
    return out
