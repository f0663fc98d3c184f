"""Every op as users call it at real sizes, on tensors whose memory nobody touches: for compiling ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench import cases

ops = torch.ops.sae_kernels
TOKENS = 16  # no kernel is specialised on it, but selections take another way with few:
MANY = 1024
SIZES = {
    "A": cases.Size(TOKENS, 2304, 65_536, 64),
    "B": cases.Size(TOKENS, 4096, 131_072, 64),
    "C": cases.Size(TOKENS, 768, 16_384, 32),
}
ODD = cases.Size(TOKENS, 701, 5003, 13)  # nothing divides by 16, and rows cannot be read 16 bytes at a time
ON = {"backend": "triton"}


def _memory(*shape: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised: pages that are never touched are never there."""
    return torch.empty(shape, dtype=dtype)


def _codes(size: cases.Size, dtype: torch.dtype, ragged: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    shape = (size.n * size.k,) if ragged else (size.n, size.k)
    offsets = torch.arange(size.n + 1) * size.k if ragged else None
    return torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=torch.int32), offsets


def _sparse(size: cases.Size, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    X, W = _memory(size.n, size.d, dtype=dtype), _memory(size.d_sae, size.d, dtype=dtype)
    ones = X.new_ones(size.n, 1)
    for ragged in (False, True):
        v, i, o = _codes(size, dtype, ragged)
        yield lambda v=v, i=i, o=o: ops.spmm(v, i, o, W, **ON)
        yield lambda v=v, i=i, o=o: ops.spmm_t(v, i, o, X, size.d_sae, **ON)
        yield lambda v=v, i=i, o=o: ops.spmm_t(v, i, o, ones, size.d_sae, **ON)
        yield lambda v=v, i=i, o=o: ops.spmm_backward(X, v, i, o, W, **ON)
        yield lambda v=v, i=i, o=o: ops.sddmm(X, W, i, o, v, **ON)
        yield lambda i=i, o=o: ops.sddmm(X, W, i, o, None, **ON)
        yield lambda i=i, o=o: ops.transpose(i, o, size.d_sae, **ON)
        yield lambda v=v, i=i, o=o: ops.prefix_decode(v, i, o, W, [size.d_sae // 4, size.d_sae], **ON)
        best = _memory(size.d_sae, 16, dtype=torch.float32), _memory(size.d_sae, 16, dtype=torch.int64)
        yield lambda v=v, i=i, o=o, b=best: ops.latent_topn(*b, v, i, o, 0, **ON)


def _selections(size: cases.Size, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    everyone, some = torch.empty(0, dtype=torch.bool), torch.ones(size.d_sae, dtype=torch.bool)
    W, b = _memory(size.d_sae, size.d, dtype=dtype), _memory(size.d_sae, dtype=dtype)
    theta, per_latent = torch.zeros(()), torch.zeros(size.d_sae)
    scores = _memory(size.n, size.d_sae, dtype=dtype)
    for k in (size.k, 512):
        yield lambda k=k: ops.topk(scores, k, **ON)
    for n in (size.n, MANY):
        x = _memory(n, size.d, dtype=dtype)
        yield lambda x=x: ops.linear_topk(x, W, b, [size.k, 512], [True, False], [everyone, some], **ON)
        yield lambda x=x: ops.linear_topk(x, W, b, [size.k], [True], [everyone], **ON)
        yield lambda x=x: ops.linear_topk(x, W, None, [size.k], [True], [everyone], **ON)
    x = _memory(size.n, size.d, dtype=dtype)
    for bias in (b, None):
        for t in (theta, per_latent):
            yield lambda bias=bias, t=t: ops.linear_threshold(x, W, bias, t, **ON)
        yield lambda bias=bias: ops.linear_batch_topk(x, W, bias, size.n * size.k, True, **ON)


def _adam(size: cases.Size, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    param, grad = (_memory(size.d_sae, size.d, dtype=dtype) for _ in range(2))
    moments = [_memory(size.d_sae, size.d, dtype=torch.float32) for _ in range(2)]
    rows, last = torch.arange(4, dtype=torch.int32), torch.zeros(size.d_sae, dtype=torch.int64)
    tail = (torch.full((3,), 1e-3, dtype=torch.float64), 2, 0.9, 0.999, 1e-8)
    for folded in (True, False):
        yield lambda f=folded: ops.adam_rows(param, *moments, grad, None, None, *tail, f, f, **ON)
        yield lambda f=folded: ops.adam_rows(param, *moments, grad[:4], rows, last, *tail, f, f, **ON)
        yield lambda f=folded: ops.adam_rows(param, *moments, None, rows, last, *tail, f, f, **ON)


def calls(size: cases.Size, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Each call compiles what it launches."""
    for group in (_sparse, _selections, _adam):
        yield from group(size, dtype)
