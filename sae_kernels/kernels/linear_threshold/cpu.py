"""`linear_threshold` on the CPU: `torch.mm` on chunks; C++ counts what stays in each, then writes it.

A few tokens are one C++ call (`_few`). Where products of integers or bfloat16 numbers are fast, `screened.py`
does many. Here, all scores are
computed in float32. Bodies: csrc/select. Memory: the outputs twice over while chunks are put together, and that of
`_pre_acts`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _cpu, _few
from .._pre_acts import PreActs, address, bias_of, check
from .._screen import IN_WORDS, screens
from . import screened
from .pieces import Piece, assemble, starts_of


def _piece(row: int, scores: Tensor, bias: Tensor | None, theta: Tensor, first: int, dtype: torch.dtype) -> Piece:
    """What stays of a chunk."""
    counts = torch.empty(scores.shape[0], dtype=torch.int64)
    step = theta.dim()  # 0-d: one for all latents
    chunk = (*_cpu.pointers(scores), address(bias), address(theta) + 4 * step * first, step)
    _cpu.call("threshold_count", *chunk, counts.data_ptr())
    starts, nnz = starts_of(counts), int(counts.sum())
    values, indices = torch.empty(nnz, dtype=dtype), torch.empty(nnz, dtype=torch.int32)
    out = (starts.data_ptr(), values.data_ptr(), indices.data_ptr())
    _cpu.call("threshold_fill", _cpu.DTYPES[dtype], *chunk, first, *out)
    return Piece(row, counts, starts, values, indices)


def _unscreened(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor, done: int) -> Iterator[Piece]:
    """What stays of the tokens from `done` on."""
    chunks = PreActs(x[done:], W)
    for row, rows in chunks.tokens():
        for first, scores in chunks.scores(row, rows):
            yield _piece(done + row, scores, bias_of(b, first, scores.shape[1]), theta, first, x.dtype)


def why_not(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(x, W, b) or _cpu.why_not(theta)


def how(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> str:
    """For `explain`."""
    return _few.IN_WORDS if _few.takes(x, W) else IN_WORDS[screens(x, W, [])]


def run(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_threshold`."""
    if (found := _few.one_threshold(x, W, b, theta)) is not None:
        return found
    check(x, W, b, theta=theta if theta.dim() else None)
    theta = theta.detach().float().contiguous()
    if _few.takes(x, W):
        return _few.threshold(x, W, b, theta)
    products = screens(x, W, [])
    found, done = screened.pieces(x, W, b, theta, products) if products else ([], 0)
    if done < x.shape[0]:
        found += _unscreened(x, W, b, theta, done)
    return assemble(x.shape[0], found, x.dtype)
