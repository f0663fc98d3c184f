"""`linear_topk` on the CPU by products of integers, folded into the rows' candidates tile by tile.

What is certain: with `_screen.integers.CERTAIN` for widths, the choice is that among exactly computed scores, whatever
the data; with others it is so but for a probability. Rows of which bounds leave too many standing are left to
`otherwise`. Values are exact either way: x · w + b summed in float32. Bodies: csrc/screen/integer_*.

Weights that are met again unchanged are read from a copy (M·d bytes, or in 16 bits twice as many, and 20 a latent,
bounded by SAE_KERNELS_SCREEN_CACHE); others are rounded 8 MiB at a time. Memory beside the copy and the outputs: these,
16 MiB of tokens as integers, and 36 MiB of candidates (or those of 16 rows, where that is more); at the end, instead of
the first two, 12 MiB of their order and 4 MiB of counters at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address, even
from .._screen.integers import BITS, CERTAIN, GROUP, Latents, Tokens, candidates_room
from .._screen.kept import contradicted
from .problem import Problem

ROWS = 4096
CANDIDATES_BYTES = 36 << 20
LATENTS_BYTES, TOKENS_BYTES = 8 << 20, 16 << 20
UNSETTLED, CONTRADICTED = 1, 2  # kernels.h: integer_topk_finish
TILES, PARTS, LEAST_PART = 64, 16, 8192  # few tokens: latents are dealt out to this many lists a token

Otherwise = Callable[[Problem], Sequence[Tensor]]  # of one selection → values, indices


def run(problem: Problem, products: str, copy: Latents | None, widths: float, otherwise: Otherwise) -> list[Tensor]:
    """The selections of `linear_topk`, all k ≥ 1. Indices ascend within a row."""
    out: list[Tensor] = []
    for one in problem.each():
        values, indices, failed = choose(one, products, copy, widths)
        if (failed == CONTRADICTED).any():
            contradicted(problem.W, products)
        rows = failed.nonzero().squeeze(1)
        if rows.numel():
            values[rows], indices[rows] = otherwise(one.of(one.x[rows]))
        out += [values, indices]
    return out


def choose(problem: Problem, products: str, copy: Latents | None, widths: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of one selection: values, indices, and which rows hold neither, since the bounds did not settle them or were
    found not to hold."""
    x, W, _, (k,), (relu,), (mask,) = problem
    x, W, bias = x.detach(), W.detach(), problem.bias()
    (n, d), m, bits = x.shape, W.shape[0], BITS[products]
    room = candidates_room(products, k, d) if widths == CERTAIN else _cpu.ask("screened_topk_room", k)
    most = min(CANDIDATES_BYTES // (12 * room), 8 * TOKENS_BYTES // (bits * d))
    rows = even(n, min(ROWS, max(16, most)), 12)
    # Depends on sizes alone: lists, and so what is computed, are the same on any number of threads.
    parts = 1 if copy is None else max(1, min(PARTS, TILES * 12 // rows, m // LEAST_PART))
    among = None if mask is None or mask.numel() == 0 else _cpu.flat(mask, torch.bool, "among")
    values, indices = torch.empty(n, k, dtype=x.dtype), torch.empty(n, k, dtype=torch.int32)
    failed = torch.full((n,), UNSETTLED, dtype=torch.uint8)
    candidates = torch.empty(3, rows * parts, room, dtype=torch.int32)  # upper, lower, latents
    progress = torch.empty(2, rows * parts, dtype=torch.int32)  # count, bound
    computed = torch.zeros(1, dtype=torch.int64)
    upper, count, each = candidates.data_ptr(), progress.data_ptr(), 4 * rows * parts * room
    memory = (upper, upper + each, upper + 2 * each, count, count + 4 * rows * parts, computed.data_ptr())
    for row in range(0, n, rows):
        part = _cpu.matrix(x[row : row + rows])
        tokens, dtype = Tokens.of(part, bits), _cpu.dtype_code(part)
        state = (*memory, part.shape[0] * parts, k, room, parts)
        of_x, of_W = _cpu.pointers(part), _cpu.pointers(W)
        for latents in _latents(W, copy, bits):
            inputs = (*tokens.args(), *latents, *of_x, *of_W, address(bias), address(among), widths)
            _cpu.call("integer_topk_fold", dtype, bits, *state, *inputs)
        del tokens  # the end needs memory of its own
        out = (values[row:].data_ptr(), indices[row:].data_ptr(), failed[row:].data_ptr())
        _cpu.call("integer_topk_finish", dtype, *state, *of_x, *of_W, address(bias), relu, *out)
        if 2 * int((failed[row : row + rows] == UNSETTLED).sum()) > part.shape[0]:
            break  # nor would the other tokens' be: they are left as they are, unsettled
    return values, indices, failed


def _latents(W: Tensor, copy: Latents | None, bits: int) -> Iterator[tuple[int, ...]]:
    """All of W's rows as integers, as C++ takes them: from the copy, or chunk by chunk."""
    m, d = W.shape
    if copy is not None:
        yield copy.args(0, m)
        return
    step = even(m, max(GROUP, 8 * LATENTS_BYTES // (bits * d)), GROUP)
    room = Latents.empty(step, d, bits)
    for first in range(0, m, step):
        rows = W[first : first + step]
        latents = room if rows.shape[0] == step else Latents.empty(rows.shape[0], d, bits)
        yield latents.of(rows).args(first, rows.shape[0])
