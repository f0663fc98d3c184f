"""`torch.library.opcheck`: schema, autograd registration, fake tensors and AOT dispatch of every op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import cases
from sae_kernels.kernels import OPS

SIZE = cases.Size(6, 5, 20, 3)


def samples(op: str) -> list[tuple]:
    """Arguments, with gradients wanted where the op has one."""
    W, b, _, _ = (t.requires_grad_() for t in cases.dictionary(SIZE))
    x = cases.normal(SIZE.n, SIZE.d, seed=5).requires_grad_()
    codes = [cases.codes(SIZE, ragged=ragged).flat() for ragged in (False, True)]
    (values, indices, _), (r_values, r_indices, offsets) = codes
    values.requires_grad_()
    r_values.requires_grad_()
    if op == "adam_rows":
        state = [torch.ones(20, 5), torch.zeros(20, 5), torch.zeros(20, 5)]
        rows, last = torch.tensor([1, 7], dtype=torch.int32), torch.zeros(20, dtype=torch.int64)
        lrs = torch.full((4,), 0.1, dtype=torch.float64)
        tail = (lrs, 2, 0.9, 0.999, 1e-8, True, True)
        return [(*state, torch.ones(20, 5), None, None, *tail), (*state, torch.ones(2, 5), rows, last, *tail)]
    if op == "latent_topn":
        best = torch.full((20, 2), -float("inf")), torch.full((20, 2), -1)
        return [(*best, v.detach(), i, o, 10) for v, i, o in codes]
    calls: dict[str, list[tuple]] = {
        "topk": [(x, 2)],
        "linear_topk": [
            (x, W, b, [3], [True], [cases.everyone()]),
            (x, W, None, [3, 4], [True, False], [cases.everyone(), torch.arange(20) > 11]),
        ],
        "linear_threshold": [(x, W, b, torch.tensor(0.5)), (x.detach(), W, None, torch.zeros(20))],
        "linear_batch_topk": [(x, W, b, 18, True), (x, W, None, 3, False)],
        "spmm": [(values, indices, None, W), (r_values, r_indices, offsets, W)],
        "spmm_t": [(values, indices, None, x, 20), (r_values, r_indices, offsets, x, 20)],
        "spmm_backward": [(x, values, indices, None, W), (x, r_values, r_indices, offsets, W)],
        "sddmm": [(x, W, indices, None, None), (x, W, r_indices, offsets, r_values.detach())],
        "transpose": [(indices, None, 20), (r_indices, offsets, 20)],
        "prefix_decode": [(values, indices, None, W, [4, 20]), (r_values, r_indices, offsets, W, [20])],
    }
    return calls[op]


@pytest.mark.parametrize("op", OPS)
def test_opcheck(backend: str, op: str) -> None:
    overload = getattr(torch.ops.sae_kernels, op).default
    for args in samples(op):
        torch.library.opcheck(overload, args, {"backend": backend})


@pytest.mark.parametrize("op", [op for op in OPS if op != "linear_threshold"])  # its size depends on the data
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(backend: str, op: str) -> None:
    """On the meta device no kernel runs: only what tracing will be told."""
    overload = getattr(torch.ops.sae_kernels, op).default

    def to_meta(arg: object) -> object:
        if isinstance(arg, list):
            return [to_meta(item) for item in arg]
        return arg.detach().to("meta") if isinstance(arg, Tensor) else arg

    for args in samples(op):
        real = overload(*args, backend=backend)
        fake = overload(*map(to_meta, args), backend=backend)
        for mine, theirs in zip(as_list(real), as_list(fake), strict=True):
            assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


def as_list(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return list(output) if isinstance(output, (list, tuple)) else []
