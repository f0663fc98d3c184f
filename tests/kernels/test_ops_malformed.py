"""Arguments the public functions never pass: a torch op is callable by anyone, and C++ must not read astray."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench import cases
from sae_kernels.errors import SaeKernelsError

ops = torch.ops.sae_kernels
N, D, M, K = 3, 4, 6, 2


def adam(backend: str, **change: object) -> None:
    args = {
        "param": torch.ones(M, D),
        "exp_avg": torch.zeros(M, D),
        "exp_avg_sq": torch.zeros(M, D),
        "grad": torch.ones(2, D),
        "rows": torch.tensor([0, 3], dtype=torch.int32),
        "last_step": torch.zeros(M, dtype=torch.int64),
        "lrs": torch.ones(3, dtype=torch.float64),
        "step": 2,
    }
    ops.adam_rows(*{**args, **change}.values(), 0.9, 0.999, 1e-8, False, False, backend=backend)


def topn(backend: str, values: torch.Tensor, tokens: torch.Tensor) -> None:
    codes = torch.ones(N, K), torch.zeros(N, K, dtype=torch.int32)
    ops.latent_topn(values, tokens, *codes, None, 0, backend=backend)


def calls(backend: str) -> dict[str, Callable[[], object]]:
    """Each must be refused. The tensors are made where the backend's are."""
    on = {"backend": backend}
    values, indices = torch.ones(N, K), torch.zeros(N, K, dtype=torch.int32)
    flat, where, offsets = torch.ones(N * K), torch.zeros(N * K, dtype=torch.int32), torch.tensor([0, 2, 4, 6])
    x, W, b = torch.ones(N, D), torch.ones(M, D), torch.ones(M)
    none, mask, theta = cases.everyone(), torch.ones(M, dtype=torch.bool), torch.tensor(0.5)
    return {
        "topk: k > M": lambda: ops.topk(x, D + 1, **on),
        "topk: k < 0": lambda: ops.topk(x, -1, **on),
        "topk: 1-d": lambda: ops.topk(b, 1, **on),
        "spmm: values of another shape": lambda: ops.spmm(values[:, :1], indices, None, W, **on),
        "spmm: ragged values of another length": lambda: ops.spmm(flat[1:], where, offsets, W, **on),
        "spmm: fixed codes with offsets": lambda: ops.spmm(values, indices, offsets, W, **on),
        "spmm: ragged codes without": lambda: ops.spmm(flat, where, None, W, **on),
        "spmm: W 1-d": lambda: ops.spmm(values, indices, None, b, **on),
        "spmm: int32 offsets": lambda: ops.spmm(flat, where, offsets.int(), W, **on),
        "spmm: empty offsets": lambda: ops.spmm(flat, where, offsets[:0], W, **on),
        "spmm_t: X of other rows": lambda: ops.spmm_t(values, indices, None, x[1:], M, **on),
        "spmm_t: ragged, X of other rows": lambda: ops.spmm_t(flat, where, offsets, x[1:], M, **on),
        "spmm_t: negative d_sae": lambda: ops.spmm_t(values, indices, None, x, -1, **on),
        "spmm_backward: grad of other rows": lambda: ops.spmm_backward(x[1:], values, indices, None, W, **on),
        "spmm_backward: grad of another width": lambda: ops.spmm_backward(x[:, 1:], values, indices, None, W, **on),
        "spmm_backward: W 1-d": lambda: ops.spmm_backward(x, values, indices, None, b, **on),
        "spmm_backward: values of another shape": lambda: ops.spmm_backward(x, values[:, :1], indices, None, W, **on),
        "sddmm: A of other rows": lambda: ops.sddmm(x[1:], W, indices, None, None, **on),
        "sddmm: A and B of other widths": lambda: ops.sddmm(x[:, 1:], W, indices, None, None, **on),
        "sddmm: gate of another shape": lambda: ops.sddmm(x, W, indices, None, values[:, :1], **on),
        "transpose: negative d_sae": lambda: ops.transpose(indices, None, -1, **on),
        "transpose: d_sae 0": lambda: ops.transpose(indices, None, 0, **on),
        "prefix_decode: beyond M": lambda: ops.prefix_decode(values, indices, None, W, [2, M + 1], **on),
        "prefix_decode: falling": lambda: ops.prefix_decode(values, indices, None, W, [3, 2], **on),
        "prefix_decode: negative": lambda: ops.prefix_decode(values, indices, None, W, [-1, 2], **on),
        "linear_topk: widths differ": lambda: ops.linear_topk(x[:, 1:], W, b, [2], [True], [none], **on),
        "linear_topk: k > M": lambda: ops.linear_topk(x, W, b, [M + 1], [True], [none], **on),
        "linear_topk: k < 0": lambda: ops.linear_topk(x, W, b, [-1], [True], [none], **on),
        "linear_topk: b too short": lambda: ops.linear_topk(x, W, b[1:], [2], [True], [none], **on),
        "linear_topk: mask too short": lambda: ops.linear_topk(x, W, b, [2], [True], [mask[1:]], **on),
        "linear_topk: mask of floats": lambda: ops.linear_topk(x, W, b, [2], [True], [mask.float()], **on),
        "linear_topk: lists of other lengths": lambda: ops.linear_topk(x, W, b, [2, 3], [True], [none], **on),
        "linear_threshold: widths differ": lambda: ops.linear_threshold(x[:, 1:], W, b, theta, **on),
        "linear_threshold: b too short": lambda: ops.linear_threshold(x, W, b[1:], theta, **on),
        "linear_threshold: theta too short": lambda: ops.linear_threshold(x, W, b, b[1:], **on),
        "linear_batch_topk: count > N M": lambda: ops.linear_batch_topk(x, W, b, N * M + 1, True, **on),
        "linear_batch_topk: count < 0": lambda: ops.linear_batch_topk(x, W, b, -1, True, **on),
        "linear_batch_topk: b too short": lambda: ops.linear_batch_topk(x, W, b[1:], 2, True, **on),
        "adam_rows: moments of another shape": lambda: adam(backend, exp_avg=torch.zeros(M, D - 1)),
        "adam_rows: moments of another dtype": lambda: adam(backend, exp_avg_sq=torch.zeros(M, D, dtype=torch.float64)),
        "adam_rows: grad of other rows": lambda: adam(backend, grad=torch.ones(3, D)),
        "adam_rows: grad of another width": lambda: adam(backend, grad=torch.ones(2, D + 1)),
        "adam_rows: last_step too short": lambda: adam(backend, last_step=torch.zeros(M - 1, dtype=torch.int64)),
        "adam_rows: a row twice": lambda: adam(backend, rows=torch.zeros(2, dtype=torch.int32)),
        "adam_rows: last_step ahead": lambda: adam(backend, last_step=torch.full((M,), 9)),
        "adam_rows: last_step negative": lambda: adam(backend, last_step=torch.full((M,), -1)),
        "adam_rows: no rates": lambda: adam(backend, lrs=torch.ones(1, dtype=torch.float64)),
        "adam_rows: step 0": lambda: adam(backend, step=0),
        "latent_topn: tokens of another shape": lambda: topn(
            backend, torch.zeros(M, 2), torch.zeros(M, 3, dtype=torch.int64)
        ),
        "latent_topn: int32 tokens": lambda: topn(backend, torch.zeros(M, 2), torch.zeros(M, 2, dtype=torch.int32)),
        "latent_topn: 1-d": lambda: topn(backend, torch.zeros(M), torch.zeros(M, dtype=torch.int64)),
    }


@pytest.mark.parametrize("name", list(calls("cpu")))
def test_refused(fast: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_KERNELS_CHECK_INDICES", "1")  # what is only seen in the numbers: on a GPU only then
    with pytest.raises((SaeKernelsError, RuntimeError, ValueError)):
        calls(fast)[name]()


def test_k_of_zero_is_empty(backend: str) -> None:
    x, W, b = torch.ones(N, D), torch.ones(M, D), torch.ones(M)
    whole = ops.linear_topk(x, W, b, [0], [True], [cases.everyone()], backend=backend)
    for out in (ops.topk(x, 0, backend=backend), whole):
        assert [tuple(t.shape) for t in out] == [(N, 0)] * 2
