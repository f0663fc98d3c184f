"""Every op once, as training and inference call it at one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..kernels import OPS

ops = torch.ops.sae_kernels


def _codes(n: int, m: int, k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents drawn with probability about 1/rank, as those of trained coders: some hot, most rare."""
    source = torch.Generator(device).manual_seed(0)
    drawn = torch.rand(n, k, generator=source, device=device)
    indices = ((m + 1.0) ** drawn - 1).long().clamp_(0, m - 1).int()
    return torch.rand(n, k, generator=source, device=device).add_(0.1).to(dtype), indices


def calls(
    n: int, d: int, m: int, k: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what, call) pairs; codes with k slots a token and ragged ones."""
    source = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device=device).mul_(d**-0.5).to(dtype)

    x, W, b = normal(n, d), normal(m, d), normal(m)
    values, indices = _codes(n, m, k, dtype, device)
    everyone = torch.empty(0, dtype=torch.bool, device=device)
    on = {"backend": "triton"}
    offsets = torch.arange(n + 1, device=device) * k
    for what, v, i, o in (("", values, indices, None), (" (ragged)", values.flatten(), indices.flatten(), offsets)):
        codes = v, i, o
        for chosen in (on, {}):  # the second: dense, where that is estimated to be faster
            yield f"spmm{what}", lambda c=codes, on=chosen: ops.spmm(*c, W, **on)
            yield f"spmm_t{what}", lambda c=codes, on=chosen: ops.spmm_t(*c, x, m, **on)
            yield f"sddmm{what}", lambda c=codes, on=chosen: ops.sddmm(x, W, c[1], c[2], c[0], **on)
            if "spmm_backward" in OPS:
                yield f"spmm_backward{what}", lambda c=codes, on=chosen: ops.spmm_backward(x, *c, W, **on)
        yield f"transpose{what}", lambda c=codes: ops.transpose(*c[1:], m, **on)
        prefixes = sorted({max(1, m // 4), m})
        yield f"prefix_decode{what}", lambda c=codes, p=prefixes: ops.prefix_decode(*c, W, p, **on)
    best = torch.full((m, 16), -float("inf"), device=device), torch.full((m, 16), -1, device=device)
    yield "latent_topn", lambda: ops.latent_topn(*best, values, indices, None, 0, **on)
    yield "linear_topk", lambda: ops.linear_topk(x, W, b, [k], [True], [everyone], **on)
    theta = torch.full((), 2.0, device=device)
    yield "linear_threshold", lambda: ops.linear_threshold(x, W, b, theta, **on)
    yield "linear_batch_topk", lambda: ops.linear_batch_topk(x, W, b, n * k, True, **on)
    scores = normal(min(n, max(1, (1 << 28) // m)), m)
    yield "topk", lambda: ops.topk(scores, k, **on)
    moments = [torch.zeros(m, d, device=device) for _ in range(2)]
    rates = torch.full((2,), 1e-3, dtype=torch.float64, device=device)
    yield "adam_rows", lambda: ops.adam_rows(W, *moments, W, None, None, rates, 1, 0.9, 0.999, 1e-8, True, True, **on)
