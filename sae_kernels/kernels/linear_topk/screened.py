"""`linear_topk` on the CPU by screening: products of few bits on chunks, float32 for the candidates alone.

Bodies: csrc/screen. What comes out is the exact choice among scores x · w + b summed in float32, one by one: it
depends neither on a BLAS nor on threads. Memory beside the outputs: that of `_screen.chunks`, and 24 or 36 MiB of
candidates (or those of 16 rows, where that is more).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address
from .._screen.chunks import BFLOAT16, Chunk, ScreeningScores, Tokens
from .._screen.integers import INT8, INT16, candidates_room
from .problem import Problem

# Rows of 8 bits take less, and leave more standing.
CANDIDATES_BYTES = {BFLOAT16: 24 << 20, INT8: 36 << 20, INT16: 24 << 20}
# One score computed exactly for every so many screened costs about as much as screening saves.
SCREENED_A_COMPUTED = 12


class _Selection:
    """One selection: its outputs, and its candidates for one chunk of tokens."""

    def __init__(
        self,
        x: Tensor,
        W: Tensor,
        bias: Tensor | None,
        products: str,
        k: int,
        relu: bool,
        among: Tensor | None,
    ) -> None:
        self.k, self.relu, self.W, self.bias = k, relu, W.detach(), bias
        self.among = None if among is None or among.numel() == 0 else _cpu.flat(among, torch.bool, "among")
        self.values = torch.empty(x.shape[0], k, dtype=x.dtype)
        self.indices = torch.empty(x.shape[0], k, dtype=torch.int32)
        self.room = candidates_room(products, k, W.shape[1])
        self._computed = torch.zeros(1, dtype=torch.int64)

    def prepare(self, rows: int) -> None:
        """Make room for chunks of so many tokens."""
        self._candidates = torch.empty(3, rows, self.room, dtype=torch.int32)  # upper, lower, latents
        self._progress = torch.empty(2, rows, dtype=torch.int32)  # count, bound
        upper, count = self._candidates.data_ptr(), self._progress.data_ptr()
        each = 4 * rows * self.room
        self._state = (upper, upper + each, upper + 2 * each, count, count + 4 * rows, self._computed.data_ptr())

    def _state_of(self, tokens: Tokens) -> tuple[int, ...]:
        return *self._state, tokens.x.shape[0], self.k, self.room

    def fold(self, tokens: Tokens, chunk: Chunk) -> None:
        """Take in a chunk of scores."""
        among = 0 if self.among is None else self.among.data_ptr() + chunk.first
        x, state = tokens.x, self._state_of(tokens)
        inputs = (*_cpu.pointers(chunk.scores), *_cpu.pointers(x), *chunk.W, *chunk.norms)
        _cpu.call("screened_topk_fold", _cpu.dtype_code(x), *state, *inputs, address(self.bias), among, chunk.first)

    def settle(self, tokens: Tokens, chunk: Chunk) -> None:
        """Compute what is left of a chunk, while its rows of W are there."""
        x, state = tokens.x, self._state_of(tokens)
        inputs = (*_cpu.pointers(x), *chunk.W, address(self.bias))
        _cpu.call("screened_topk_settle", _cpu.dtype_code(x), *state, *inputs)

    def finish(self, tokens: Tokens) -> None:
        """Write the chunk's rows to the outputs."""
        x, state = tokens.x, self._state_of(tokens)
        values, indices = (out[tokens.row :].data_ptr() for out in (self.values, self.indices))
        inputs = (*_cpu.pointers(x), *_cpu.pointers(self.W), address(self.bias))
        _cpu.call("screened_topk_finish", _cpu.dtype_code(x), *state, *inputs, self.relu, values, indices)

    def computed(self) -> int:
        """Scores computed exactly so far."""
        return int(self._computed)


def run(problem: Problem, products: str = BFLOAT16) -> tuple[list[Tensor], int]:
    """The selections of `linear_topk`, all k ≥ 1, and how many tokens they are done for: fewer than all where
    bounds decide so little that computing everything in float32 is faster."""
    (x, W, *_), bias = problem, problem.bias()
    selections = [_Selection(x, W, bias, products, *each) for each in problem.selections()]
    chunks = ScreeningScores(x, W, CANDIDATES_BYTES[products] // (12 * sum(each.room for each in selections)), products)
    for each in selections:
        each.prepare(chunks.rows)
    done = 0
    for tokens in chunks.tokens():
        if not _pass(tokens, chunks, selections):
            break
        done = tokens.row + tokens.x.shape[0]
    return [tensor for each in selections for tensor in (each.values, each.indices)], done


def _pass(tokens: Tokens, chunks: ScreeningScores, selections: list[_Selection]) -> bool:
    """All latents for one chunk of tokens; False if it was given up."""
    rows = tokens.x.shape[0]
    before = sum(each.computed() for each in selections)
    expected = 8 * rows * sum(each.k for each in selections)
    for chunk in chunks.scores(tokens):
        for each in selections:
            each.fold(tokens, chunk)
            if chunks.settles:
                each.settle(tokens, chunk)
        screened = rows * (chunk.first + chunk.scores.shape[1])
        if sum(each.computed() for each in selections) - before > expected + screened // SCREENED_A_COMPUTED:
            return False
    for each in selections:
        each.finish(tokens)
    return True
