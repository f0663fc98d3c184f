"""`linear_batch_topk` on the CPU by screening: products of few bits on chunks, float32 for the candidates alone.

Bodies: csrc/screen. Memory beside the outputs: that of `_screen.chunks`, and candidates of 16 bytes each, three
times `count` of them and a million more (or four times `count`, where that is more); with 8 bits,
11 + (d / 680)² times `count`, where that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from .._pre_acts import address, bias_of
from .._screen.chunks import BFLOAT16, ScreeningScores
from .._screen.integers import INT8, candidates_room

# One score computed exactly for every so many screened costs about as much as screening saves.
SCREENED_A_COMPUTED = 12


def run(
    x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool, products: str = BFLOAT16
) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `sae_kernels.kernels.linear_batch_topk`; count ≥ 1. None where bounds decide so little that computing
    everything in float32 is faster."""
    x, W, bias = _cpu.matrix(x.detach()), W.detach(), bias_of(b, 0, W.shape[0])
    chunks = ScreeningScores(x, W, products=products)
    room = _cpu.ask("screened_batch_room", count, chunks.cols)
    if products == INT8:
        room = max(room, candidates_room(products, count, x.shape[1]))
    candidates = torch.empty(4, room, dtype=torch.int32)  # upper, lower, rows, latents
    bound = torch.tensor([-(2**31)], dtype=torch.int32)
    progress = torch.zeros(2, dtype=torch.int64)  # candidates; scores computed exactly
    found = progress.data_ptr()
    state = (*(t.data_ptr() for t in (*candidates, bound)), found, found + 8, count, room)
    dtype, of_x = _cpu.dtype_code(x), _cpu.pointers(x)
    screened = 0
    for tokens in chunks.tokens():
        for chunk in chunks.scores(tokens):
            inputs = (*_cpu.pointers(chunk.scores), *of_x, *chunk.W, *chunk.norms, address(bias))
            _cpu.call("screened_batch_fold", dtype, *state, *inputs, tokens.row, chunk.first)
            if chunks.settles:
                _cpu.call("screened_batch_settle", dtype, *state, *of_x, *chunk.W, address(bias))
            screened += chunk.scores.numel()
            if int(progress[1]) > 8 * count + screened // SCREENED_A_COMPUTED:
                return None
    values, indices = torch.empty(count, dtype=x.dtype), torch.empty(count, dtype=torch.int32)
    offsets = torch.zeros(x.shape[0] + 1, dtype=torch.int64)
    out = (offsets.data_ptr(), values.data_ptr(), indices.data_ptr())
    _cpu.call("screened_batch_finish", dtype, *state, *of_x, *_cpu.pointers(W), address(bias), relu, *out)
    return values, indices, offsets
