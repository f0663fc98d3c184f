"""Ragged selections: scores in, lists of what was kept per row, CSR out. Kernels: `ragged_kernels`.

*First pass*: every score is computed once and looked at once; what is kept goes to its row's list. Lists have a fixed
room, so memory is bounded whatever the data holds.
*Rows whose list was too short* are scored again (`Again`), alone if they are few, and written straight to their place.
Scored alone, a row may differ from the first pass in its last bits, for a GEMM of another shape sums in another order:
whatever is decided about such a row comes from scores of one and the same shape, which repeat bit for bit.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import interpreting, ragged_kernels
from .inputs import cdiv, next_power_of_2
from .scores import ROWS, Scores, budget, even
from .tuning import Config, pick

ENTRY = 8  # bytes of a list's: float32 and int32
LEAST_ROOM = 64
PROGRAMS = 512  # that fill the machine: below, a row is split
PART = 1024  # latents of a split row, at least
ALONE = 4  # a quarter of all rows, or fewer, are scored alone; more: everything again


@dataclass(frozen=True)
class Source:
    """Entries of rows: lists, or a chunk of scores of the latents from `first` on, whose bias is still to be added."""

    numbers: Tensor  # (rows, stride)
    latents: Tensor | None  # of lists
    lengths: Tensor | None
    bias: Tensor | None = None
    first: int = 0

    @property
    def rows(self) -> int:
        return self.numbers.shape[0]

    @property
    def meta(self) -> dict[str, Any]:
        """Of a launch."""
        return {"LISTS": self.latents is not None, "BIAS": self.bias is not None, **self._config.meta}

    @property
    def grid(self) -> tuple[int]:
        return (cdiv(self.rows, self._config.tiles["ROWS"]),)

    @property
    def _config(self) -> Config:
        return config("again") if self.latents is None else config("lists", self.numbers.shape[1])


@dataclass(frozen=True)
class Rule:
    """What is kept: z > θ or NaN; or the best, down to the key in `state`."""

    theta: Tensor | None
    state: Tensor | None
    relu: bool = False

    @property
    def kind(self) -> int:
        """THETA of the kernels."""
        return 0 if self.theta is None else 1 + self.theta.dim()


@dataclass(frozen=True)
class Again:
    """Rows to be scored again. `sources` yields (i, source of rows[i : i + source.rows]), the same bits each time."""

    rows: Tensor
    sources: Callable[[], Iterator[tuple[int, Source]]]


class Lists:
    """`per_row` lists for each of n rows, in the order of latents."""

    def __init__(self, n: int, per_row: int, room: int, device: torch.device) -> None:
        self.n, self.per_row, self.room = n, per_row, room
        self.values = torch.empty(n * per_row, room, dtype=torch.float32, device=device)
        self.latents = torch.empty(n * per_row, room, dtype=torch.int32, device=device)
        self.counts = torch.zeros(n * per_row, dtype=torch.int32, device=device)

    def of(self, row: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The lists of some rows."""
        part = slice(row * self.per_row, (row + rows) * self.per_row)
        return self.values[part], self.latents[part], self.counts[part]

    def short(self) -> Tensor:
        """(n,) Rows with a list that was too short."""
        return (self.counts > self.room).view(self.n, self.per_row).any(1)

    def source(self, without: Tensor | None = None) -> Source:
        """What the lists hold, `without` (n,) rows."""
        lengths = self.counts.clamp_max(self.room)
        if without is not None:
            lengths = lengths.view(self.n, -1).masked_fill(without[:, None], 0).view(-1)
        return Source(self.values, self.latents, lengths)


def config(kernel: str, width: int = 0) -> Config:
    """How rows: `append`, the first pass; `lists`; `again`, scores again. Or how a tally is read: `raise`."""
    if kernel == "raise":
        sizes = [(512, 8)] if interpreting() else [(32, 8), (64, 8), (64, 16)]
        return pick("ragged.raise", "", [Config({"STEP": step}, num_warps=warps) for step, warps in sizes])
    tile = next_power_of_2(width)
    rows = 16 if interpreting() else 1  # there programs are dear, and tiles cheap
    if kernel == "append":  # four tiles at a time, by one warp, which needs no barrier
        sizes = [(max(16, min(each, tile // 4)), 1) for each in (256, 512, 128)]
    elif kernel == "lists":
        sizes = [(min(tile, each), 1) for each in (256, 128, 512)]
    else:
        sizes = [(1024, 4), (512, 2), (2048, 4)]  # whatever the width of a chunk: seldom needed, so one kernel for all
    choices = [Config({"ROWS": rows, "BLOCK": block}, num_warps=warps) for block, warps in dict.fromkeys(sizes)]
    return pick(f"ragged.{kernel}", f"{tile} wide" if width else "", choices)


def plan(n: int, m: int, itemsize: int, per_row: int = 0) -> Config:
    """Tokens and latents of a chunk, the room of a row: for lists of about M/128 entries in 16 bits, 10 % of the (N, M)
    tensor with the scratch; room for three times as many as are wanted `per_row` in any case."""
    rows = even(n, ROWS, 128)
    cols = even(m, max(128, budget(n, m, itemsize) // 4 // rows), 128)
    room = max(LEAST_ROOM, m * itemsize // 256, 3 * per_row)
    room = min(cdiv(room, 32), cdiv(m, 32)) * 32
    size_class = f"{itemsize} bytes, d_sae<={next_power_of_2(m)}"
    return pick("ragged", size_class, [Config({"ROWS": rows, "COLS": cols, "ROOM": room})])


def parts(rows: int, cols: int) -> int:
    """Into how many parts each row of a chunk is split, so that few tokens fill the machine too."""
    return 1 if rows >= PROGRAMS else min(cdiv(cols, PART), cdiv(PROGRAMS, rows))


def read(*numbers: Tensor) -> list[int]:
    """Numbers on the host, which waits for the device. Compiling ahead of time there are none: ones."""
    if numbers[0].is_cpu and not interpreting():
        return [1] * len(numbers)
    return torch.stack([number.long() for number in numbers]).tolist()


def alone(x: Tensor, W: Tensor, bias: Tensor | None, short: Tensor, how_many: int) -> Again:
    """The short rows, scored apart from the others, an eighth of all rows at a time."""
    rows = torch.sort(short.to(torch.uint8), descending=True, stable=True).indices[:how_many]
    most = max(1, x.shape[0] // 8)

    def sources() -> Iterator[tuple[int, Source]]:
        for begin in range(0, how_many, most):
            scores = Scores(x.index_select(0, rows[begin : begin + most]), W)
            for row, size in scores.tokens():
                for first, chunk in scores.latents(row, size):
                    yield begin + row, Source(chunk, None, None, bias, first)

    return Again(rows, sources)


def everything(x: Tensor, chunks: Callable[[], Iterator[tuple[int, int, Tensor]]], bias: Tensor | None) -> Again:
    """All rows, in the chunks of the first pass: (first row, first latent, scores)."""

    def sources() -> Iterator[tuple[int, Source]]:
        for row, first, scores in chunks():
            yield row, Source(scores, None, None, bias, first)

    return Again(torch.arange(x.shape[0], device=x.device), sources)


def counted(source: Source | None, again: Again | None, rule: Rule, n: int) -> tuple[Tensor, Tensor]:
    """(n,) entries of each row kept for certain, and those that tie at the end; int64. A row has one list."""
    device = (source.numbers if source is not None else again.rows).device  # pyright: ignore[reportOptionalMemberAccess]
    kept = torch.zeros(n, dtype=torch.int32, device=device)
    ties = torch.zeros_like(kept)
    if source is not None:
        _count(source, rule, kept, ties)
    if again is not None:
        more = kept.new_zeros(again.rows.shape[0])
        more_ties = torch.zeros_like(more)
        for at, each in again.sources():
            part = slice(at, at + each.rows)
            _count(each, rule, more[part], more_ties[part])
        kept.index_copy_(0, again.rows, more)
        ties.index_copy_(0, again.rows, more_ties)
    return kept.long(), ties.long()


def _count(source: Source, rule: Rule, kept: Tensor, ties: Tensor) -> None:
    ragged_kernels.count_kept[source.grid](
        source.numbers, source.latents, source.lengths, source.bias, rule.theta, rule.state, kept, ties, source.rows,
        source.first, source.numbers.shape[1], THETA=rule.kind, **source.meta,
    )  # fmt: skip


def fill(
    source: Source | None,
    again: Again | None,
    rule: Rule,
    offsets: Tensor,
    ties: Tensor | None,
    out: tuple[Tensor, Tensor],
) -> None:
    """Write the rows between their offsets; of their ties, as many as `ties` says."""
    if source is not None and source.lengths is not None:
        lengths = source.lengths.view(offsets.shape[0] - 1, -1)
        starts, ends = offsets[:-1], offsets[1:]
        if lengths.shape[1] > 1:
            before = lengths.cumsum(1)
            ends = (starts[:, None] + before).view(-1)
            starts = ends - source.lengths
        _fill(source, rule, starts, ends, ties, out)
    if again is not None:
        starts, ends = offsets[:-1][again.rows], offsets[1:][again.rows]
        left = None if ties is None else ties[again.rows]
        for at, each in again.sources():
            part = slice(at, at + each.rows)
            _fill(each, rule, starts[part], ends[part], None if left is None else left[part], out)


def _fill(
    source: Source, rule: Rule, starts: Tensor, ends: Tensor, ties: Tensor | None, out: tuple[Tensor, Tensor]
) -> None:
    kind = rule.kind if source.latents is None else min(1, rule.kind)  # lists kept by θ are copied: one kernel for both
    ragged_kernels.fill_rows[source.grid](
        source.numbers, source.latents, source.lengths, source.bias, rule.theta, rule.state, starts, ends, ties, *out,
        source.rows, source.first, source.numbers.shape[1], THETA=kind, RELU=rule.relu, **source.meta,
    )  # fmt: skip


def offsets_of(lengths: Tensor) -> Tensor:
    """(n+1,) int64 of (n,) lengths."""
    offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def widths(m: int, cols: int, room: int) -> Sequence[tuple[int, int]]:
    """(first latent, latents) of the chunks of a selection whose bound rises: the first ones narrow, since before there
    is a bound all is kept, and after w latents of all tokens about a fraction 1/w of what comes next."""
    found, first = [], 0
    while first < m:
        width = min(cols, m - first, max(min(128, room), first // 256 * 128) if first else room)
        found.append((first, width))
        first += width
    return found
