"""`linear_topk` on the CPU: `torch.mm` on chunks, folded by C++ into the rows' candidates while in cache.

A few tokens are one C++ call (`_few`), and with AMX some more of very many latents. Where products of integers or of
bfloat16 numbers are fast, `in_integers.py` or `screened.py` does many. Here, all scores are computed in float32.
Bodies: csrc/select. Memory beside the outputs: that of `_pre_acts`, and 16 MiB of candidates (or those of 16 rows,
about 16·k bytes each and selection, where that is more), whatever N and M. Given the scores, the selection is exact
and deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _cpu, _few
from .._pre_acts import PreActs, address, bias_of, check, part
from .._screen import BFLOAT16, IN_WORDS, screens
from .._screen.chunks import in_pieces
from .._screen.integers import BITS, CERTAIN, Latents, kept
from .._screen.kept import has
from .._screen.policy import bfloat16_pays, mode, screens_with_copy
from . import in_integers, screened
from .problem import Problem

CANDIDATES_BYTES = 16 << 20


class _Selection:
    """One selection: its outputs, and its candidates for one chunk of tokens."""

    def __init__(self, x: Tensor, k: int, relu: bool, among: Tensor | None, rows: int, room: int) -> None:
        self.k, self.relu = k, relu
        self.among = None if among is None or among.numel() == 0 else _cpu.flat(among, torch.bool, "among")
        self.values = torch.empty(x.shape[0], k, dtype=x.dtype)
        self.indices = torch.empty(x.shape[0], k, dtype=torch.int32)
        each = rows * room
        self._memory = torch.empty(2 * each + 2 * rows, dtype=torch.int32)  # keys, latents, count, bound
        keys = self._memory.data_ptr()
        self._state = (keys, keys + 4 * each, keys + 8 * each, keys + 8 * each + 4 * rows)

    def _arguments(self, rows: int) -> tuple[int, ...]:
        return (*self._state, rows, self.k)

    def fold(self, scores: Tensor, bias: Tensor | None, first: int) -> None:
        """Take in a chunk of scores."""
        among = 0 if self.among is None else self.among.data_ptr() + first
        state = self._arguments(scores.shape[0])
        _cpu.call("running_topk_fold", *state, *_cpu.pointers(scores), address(bias), among, first)

    def finish(self, row: int, rows: int) -> None:
        """Write the chunk's rows to the outputs."""
        values, indices = part(self.values, row, rows), part(self.indices, row, rows)
        state = self._arguments(rows)
        dtype = _cpu.dtype_code(values)
        _cpu.call("running_topk_finish", dtype, *state, self.relu, values.data_ptr(), indices.data_ptr())


def why_not(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(x, W, b)


def how(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> str:
    """For `explain`."""
    if mode() == "int8":
        from . import cpu_int8

        if cpu_int8.why_not(x, W, b, ks, relus, among) is None:
            return cpu_int8.IN_WORDS
    if len(ks) == 1 and _few.takes(x, W, ks[0]):
        return _few.IN_WORDS
    if min(ks, default=0) < 1:
        return IN_WORDS[""]
    others = screens_with_copy(x, W, ks) if len(ks) == 1 else ""
    return IN_WORDS[others if others and has(W, others) else screens(x, W, ks)]


def run(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> list[Tensor]:
    """See `sae_kernels.kernels.linear_topk`. Indices ascend within a row."""
    if mode() == "int8":
        from . import cpu_int8  # which comes back with what it does not settle

        if cpu_int8.why_not(x, W, b, ks, relus, among) is None:
            return cpu_int8.run(x, W, b, ks, relus, among)
    return certain(x, W, b, ks, relus, among)


def certain(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> list[Tensor]:
    """`run`, whatever SAE_KERNELS_SCREENING says of 8 bits."""
    if len(ks) == len(relus) == len(among) == 1:
        found = _few.one_top_k(x, W, b, ks[0], relus[0], among[0])
        if found is not None:
            return found
    for k, mask in zip(ks, among, strict=True):
        if mask is None or mask.numel() == 0:
            check(x, W, b, k)
        else:
            check(x, W, b, k, among=mask)
    if len(ks) == len(relus) == 1 and ks[0] > 0:
        few = _few.takes(x, W, ks[0])
        copy = _few.copy_of(W, ks[0]) if few else _few.copy_for_many(x, W, ks[0])
        if few or copy is not None:
            return _few.top_k(x, W, b, ks[0], relus[0], among[0], copy)
    problem = Problem(x, W, b, ks, relus, among)
    if min(ks, default=0) < 1:
        return _unscreened(problem)
    products = screens(x, W, ks)
    alone = len(ks) == 1  # several share the scores of `screened`
    others = screens_with_copy(x, W, ks) if alone else ""
    copy = kept(W, x.shape[0], others) if others else None
    if copy is not None:
        return _in_integers(problem, others, copy)
    if products in BITS and alone and not in_pieces(W):
        return _in_integers(problem, products, kept(W, x.shape[0], products))
    return _screened(problem, products) if products else _unscreened(problem)


def _in_integers(problem: Problem, products: str, copy: Latents | None) -> list[Tensor]:
    return in_integers.run(problem, products, copy, CERTAIN, _otherwise)


def _otherwise(problem: Problem) -> list[Tensor]:
    x, W, b, (k,), (relu,), (mask,) = problem
    if _few.takes(x, W, k):
        return _few.top_k(x, W, b, k, relu, mask, None)
    return _screened(problem, BFLOAT16) if bfloat16_pays() else _unscreened(problem)


def _screened(problem: Problem, products: str) -> list[Tensor]:
    out, done = screened.run(problem, products)
    if done < problem.x.shape[0]:
        rest = _unscreened(problem.of(problem.x[done:]))
        for mine, theirs in zip(out, rest, strict=True):
            mine[done:].copy_(theirs)
    return out


def _unscreened(problem: Problem) -> list[Tensor]:
    x, W, b, ks, *_ = problem
    rooms = [_cpu.ask("running_topk_room", k) for k in ks]
    chunks = PreActs(x, W, CANDIDATES_BYTES // max(1, 8 * sum(rooms)))
    selections = [
        _Selection(x, *each, chunks.rows, room) for each, room in zip(problem.selections(), rooms, strict=True)
    ]
    active = [selection for selection in selections if selection.k > 0]
    for row, rows in chunks.tokens():
        for first, scores in chunks.scores(row, rows):
            bias = bias_of(b, first, scores.shape[1])
            for selection in active:
                selection.fold(scores, bias, first)
        for selection in active:
            selection.finish(row, rows)
    return [tensor for selection in selections for tensor in (selection.values, selection.indices)]
