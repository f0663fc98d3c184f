"""`linear_threshold` on the CPU by screening: products of few bits on chunks, float32 for what may lie above θ.

Bodies: csrc/screen. Memory beside the outputs: that of `_screen.chunks`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address, bias_of
from .._screen.chunks import BFLOAT16, Chunk, ScreeningScores, Tokens
from .pieces import Piece, starts_of

# One score computed exactly for every so many screened costs about as much as screening saves.
SCREENED_A_COMPUTED = 12


def pieces(x: Tensor, W: Tensor, b: Tensor | None, theta: Tensor, products: str = BFLOAT16) -> tuple[list[Piece], int]:
    """What stays, chunk by chunk, and how many tokens that is for: fewer than all where so much stays that
    computing everything in float32 is faster."""
    bias = bias_of(b, 0, W.shape[0])
    chunks, found, done = ScreeningScores(x, W, products=products), [], 0
    for tokens in chunks.tokens():
        some = []
        for chunk in chunks.scores(tokens):
            piece = _piece(tokens, bias, theta, chunk)
            if piece is None:
                return found, done
            some.append(piece)
        found += some
        done = tokens.row + tokens.x.shape[0]
    return found, done


def _piece(tokens: Tokens, bias: Tensor | None, theta: Tensor, chunk: Chunk) -> Piece | None:
    """What stays of a chunk; None if that may be too much."""
    x, scores, first = tokens.x, _cpu.pointers(chunk.scores), chunk.first
    counts, step = torch.empty(x.shape[0], dtype=torch.int64), theta.dim()  # 0-d: one for all latents
    theta_at, bias_at = address(theta) + 4 * step * first, 0 if bias is None else address(bias) + 4 * first
    _cpu.call("screened_threshold_count", *scores, x.shape[1], *chunk.norms, bias_at, theta_at, step, counts.data_ptr())
    starts, most = starts_of(counts), int(counts.sum())
    if most > chunk.scores.numel() // SCREENED_A_COMPUTED:
        return None
    values, indices = torch.empty(most, dtype=x.dtype), torch.empty(most, dtype=torch.int32)
    inputs = (*scores, *_cpu.pointers(x), *chunk.W, *chunk.norms)
    out = (starts.data_ptr(), counts.data_ptr(), values.data_ptr(), indices.data_ptr())
    _cpu.call("screened_threshold_fill", _cpu.dtype_code(x), *inputs, address(bias), theta_at, step, first, *out)
    return Piece(tokens.row, counts, starts, values, indices)
