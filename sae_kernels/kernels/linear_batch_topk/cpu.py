"""`linear_batch_topk` on the CPU: `torch.mm` on chunks, folded by C++ into the whole batch's candidates.

Where products of integers or bfloat16 numbers are fast, `screened.py` does it. Here, all scores are computed in
float32. Bodies: csrc/select. Memory beside the outputs: that of `_pre_acts`, and candidates of 12 bytes each, twice
`count` of them or, where that is more, `count` and a million.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from .. import _cpu
from .._pre_acts import PreActs, address, bias_of, check
from .._screen import IN_WORDS, screens
from . import screened


def why_not(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(x, W, b)


def how(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> str:
    """For `explain`."""
    return IN_WORDS[_products(x, W, count)]


def run(x: Tensor, W: Tensor, b: Tensor | None, count: int, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `sae_kernels.kernels.linear_batch_topk`."""
    check(x, W, b)
    n = x.shape[0]
    if not 0 <= count <= n * W.shape[0]:  # before memory for count is asked for
        raise ShapeError(f"count = {count}, expected 0 <= count <= {n * W.shape[0]}")
    values, indices = torch.empty(count, dtype=x.dtype), torch.empty(count, dtype=torch.int32)
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    if count == 0:
        return values, indices, offsets
    products = _products(x, W, count)
    if products:
        found = screened.run(x, W, b, count, relu, products)
        if found is not None:
            return found
    chunks = PreActs(x, W)
    room = _cpu.ask("batch_topk_room", count, chunks.cols)
    candidates = torch.empty(3, room, dtype=torch.int32)
    bound = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    found = torch.zeros(1, dtype=torch.int64)
    state = (*(t.data_ptr() for t in (*candidates, bound, found)), count, room)
    for row, rows in chunks.tokens():
        for first, scores in chunks.scores(row, rows):
            bias = bias_of(b, first, scores.shape[1])
            _cpu.call("batch_topk_fold", *state, *_cpu.pointers(scores), address(bias), row, first)
    out = (offsets.data_ptr(), values.data_ptr(), indices.data_ptr())
    _cpu.call("batch_topk_finish", _cpu.dtype_code(x), *state, n, relu, *out)
    return values, indices, offsets


def _products(x: Tensor, W: Tensor, count: int) -> str:
    return screens(x, W, [-(-count // max(1, x.shape[0]))])
