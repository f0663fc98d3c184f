"""`prefix_decode` in C++: one pass over each row's slots, written out once a prefix. csrc/prefix_decode."""

from __future__ import annotations

from torch import Tensor

from .. import _cpu


def why_not(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> str | None:
    """None, or why the C++ kernel declines."""
    return _cpu.why_not(values, W)


def run(values: Tensor, indices: Tensor, offsets: Tensor | None, W: Tensor, prefixes: list[int]) -> Tensor:
    """See `sae_kernels.kernels.prefix_decode`."""
    codes = _cpu.Codes(values, indices, offsets, W.dtype)
    W = _cpu.matrix(W)
    out = _cpu.empty(len(prefixes), codes.n, W.shape[1], dtype=W.dtype)
    args = (*codes.args, *_cpu.pointers(W), *_cpu.pointers(out.flatten(0, 1)), list(prefixes))
    _cpu.call("prefix_decode", _cpu.dtype_code(W), *args, codes=codes, limit=W.shape[0])
    return out
