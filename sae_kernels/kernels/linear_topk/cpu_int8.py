"""`linear_topk` on the CPU, screened by 8-bit products: the choice that `cpu` makes, but for a stated probability.

Only by name: `encode(..., screening="int8")`, SAE_KERNELS_SCREENING=int8. What the probability is, and what it is over:
`_screen.int8`. Values are exact whatever is chosen: x · w + b summed in float32. Bodies: csrc/screen/int8_*. Products
are VNNI's, or with AMX and more than 4 tokens its tiles' (tested in emulation, not timed): the same integers.

Weights that are met again unchanged are read from a copy in 8 bits (M·d bytes and 16 a latent, bounded by
SAE_KERNELS_SCREEN_CACHE); others are rounded 8 MiB at a time, which pays from `LEAST_TOKENS` on: with fewer, `cpu` runs
instead. So it does for tokens whose scores the bounds tell apart too badly, row by row. Memory beside the copy and the
outputs: 8 MiB of latents, the tokens in 8 bits, and 24 MiB of candidates (or those of 16 rows, where that is more).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address, check, even
from .._screen.int8 import GROUP, KIND, Latents, Tokens, kept, widths
from .._screen.int8 import why_not as _why_not
from .._screen.kept import contradicted
from . import cpu

LEAST_TOKENS = 256  # rounding a weight takes as long as 8 bits save on so many
ROWS = 4096
CANDIDATES_BYTES = 24 << 20
LATENTS_BYTES = 8 << 20
CONTRADICTED = 2  # kernels.h: int8_topk_finish
TILES, PARTS, LEAST_PART = 64, 16, 8192  # few tokens: latents are dealt out to this many lists a token


def why_not(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> str | None:
    """None, or why 8 bits do not serve."""
    return _cpu.why_not(x, W, b) or _why_not(W)


def run(
    x: Tensor, W: Tensor, b: Tensor | None, ks: list[int], relus: list[bool], among: Sequence[Tensor | None]
) -> list[Tensor]:
    """See `sae_kernels.kernels.linear_topk`. Indices ascend within a row."""
    for k, mask in zip(ks, among, strict=True):
        check(x, W, b, k, among=None if mask is None or mask.numel() == 0 else mask)
    if min(ks, default=0) < 1 or x.numel() == 0:
        return cpu.certain(x, W, b, ks, relus, among)
    copy = kept(W, x.shape[0])
    if copy is None and x.shape[0] < LEAST_TOKENS:
        return cpu.certain(x, W, b, ks, relus, among)
    bias = None if b is None else b.detach().float().contiguous()
    out: list[Tensor] = []
    for k, relu, mask in zip(ks, relus, among, strict=True):
        values, indices, failed = _choose(x.detach(), W.detach(), bias, copy, k, relu, mask)
        if (failed == CONTRADICTED).any():
            contradicted(W, KIND)
        rows = failed.nonzero().squeeze(1)
        if rows.numel():
            again = cpu.certain(x[rows], W, b, [k], [relu], [mask])
            values[rows], indices[rows] = again
        out += [values, indices]
    return out


def _choose(
    x: Tensor, W: Tensor, bias: Tensor | None, copy: Latents | None, k: int, relu: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices, and which rows hold neither, since the bounds did not settle them or were found not to hold."""
    n, m = x.shape[0], W.shape[0]
    room = _cpu.ask("screened_topk_room", k)
    rows = even(n, min(ROWS, max(16, CANDIDATES_BYTES // (12 * room))), 12)
    # Depends on sizes alone: lists, and so what is computed, are the same on any number of threads.
    parts = 1 if copy is None else max(1, min(PARTS, TILES * 12 // rows, m // LEAST_PART))
    among = None if mask is None or mask.numel() == 0 else _cpu.flat(mask, torch.bool, "among")
    values, indices = torch.empty(n, k, dtype=x.dtype), torch.empty(n, k, dtype=torch.int32)
    failed = torch.empty(n, dtype=torch.uint8)
    candidates = torch.empty(3, rows * parts, room, dtype=torch.int32)  # upper, lower, latents
    progress = torch.empty(2, rows * parts, dtype=torch.int32)  # count, bound
    computed = torch.zeros(1, dtype=torch.int64)
    upper, count, each = candidates.data_ptr(), progress.data_ptr(), 4 * rows * parts * room
    memory = (upper, upper + each, upper + 2 * each, count, count + 4 * rows * parts, computed.data_ptr())
    for row in range(0, n, rows):
        part = _cpu.matrix(x[row : row + rows])
        tokens, dtype = Tokens.of(part), _cpu.dtype_code(part)
        state = (*memory, part.shape[0] * parts, k, parts)
        given = (*_cpu.pointers(part), *_cpu.pointers(W), address(bias))
        for latents in _latents(W, copy):
            inputs = (*tokens.args(), *latents, *given, address(among), widths(m))
            _cpu.call("int8_topk_fold", dtype, *state, *inputs)
        out = (values[row:].data_ptr(), indices[row:].data_ptr(), failed[row:].data_ptr())
        _cpu.call("int8_topk_finish", dtype, *state, *given, relu, *out)
    return values, indices, failed


def _latents(W: Tensor, copy: Latents | None) -> Iterator[tuple[int, ...]]:
    """All of W's rows in 8 bits, as C++ takes them: from the copy, or chunk by chunk."""
    m, d = W.shape
    if copy is not None:
        yield copy.args(0, m)
        return
    step = even(m, max(GROUP, LATENTS_BYTES // d), GROUP)
    room = Latents.empty(step, d)
    for first in range(0, m, step):
        rows = W[first : first + step]
        latents = room if rows.shape[0] == step else Latents.empty(rows.shape[0], d)
        yield latents.of(rows).args(first, rows.shape[0])
