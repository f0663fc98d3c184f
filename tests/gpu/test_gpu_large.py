"""More than 2**31 elements in real memory: offsets are 64 bits wide. Samples of the result are compared."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close, assert_top_k_within
from torch import Tensor

ops = torch.ops.sae_kernels
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
ON = {"backend": "triton"}
ROWS, LATENTS, WIDTH, K = 16_385, 131_073, 64, 32  # ROWS · LATENTS passes 2**31
SAMPLE = [0, 1, 8191, 16_383, 16_384]
TOKENS, MANY, WIDE, SLOTS = 16_385, 1_048_577, 2304, 64  # TOKENS · SLOTS · WIDE and MANY · WIDE pass 2**31


def linear() -> tuple[Tensor, Tensor, Tensor]:
    """x, W, b in bfloat16."""
    x = torch.randn(ROWS, WIDTH).bfloat16()
    W = (torch.randn(LATENTS, WIDTH) * WIDTH**-0.5).bfloat16()
    return x, W, (torch.randn(LATENTS) * 0.1).bfloat16()


def truth(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Pre-acts of the sampled rows, in float64."""
    return x[SAMPLE].double() @ W.double().T + b.double()


@pytest.mark.parametrize("k", [1, 64])
def test_topk(k: int) -> None:
    scores = torch.empty(ROWS, LATENTS, dtype=torch.bfloat16).normal_()
    assert scores.numel() > 2**31
    values, indices = ops.topk(scores, k, **ON)
    for first in range(0, ROWS, 2048):
        rows = slice(first, first + 2048)
        assert torch.equal(values[rows].sort(1).values, scores[rows].topk(k, sorted=False).values.sort(1).values)
        assert torch.equal(values[rows], scores[rows].gather(1, indices[rows].long()))


def test_linear_topk() -> None:
    x, W, b = linear()
    values, indices = ops.linear_topk(x, W, b, [K], [False], [torch.empty(0, dtype=torch.bool)], **ON)
    z = truth(x, W, b)
    assert_top_k_within(indices[SAMPLE], z, K, slack=1e-4)
    assert_close(values[SAMPLE], z.gather(1, indices[SAMPLE].long()))


def test_linear_threshold() -> None:
    x, W, b = linear()
    values, indices, offsets = ops.linear_threshold(x, W, b, torch.tensor(3.5), **ON)
    z = truth(x, W, b)
    assert offsets[-1].item() == values.numel() == indices.numel() > ROWS
    for row, exact in zip(SAMPLE, z, strict=True):
        found = indices[offsets[row] : offsets[row + 1]].long()
        assert (found.diff() > 0).all()
        clear = (exact - 3.5).abs() > 1e-4  # closer to θ either side is right
        kept = torch.zeros_like(clear)
        kept[found] = True
        assert torch.equal(kept[clear], exact[clear] > 3.5)
        assert_close(values[offsets[row] : offsets[row + 1]], exact[found])


def test_linear_batch_topk() -> None:
    x, W, b = linear()
    x[-1] *= 4  # much of the batch's best lies at its very end
    count = 8 * ROWS
    values, indices, offsets = ops.linear_batch_topk(x, W, b, count, True, **ON)
    assert values.numel() == count == offsets[-1].item()
    least = values.min().item()
    for row, exact in zip(SAMPLE, truth(x, W, b), strict=True):
        found = indices[offsets[row] : offsets[row + 1]].long()
        clear = (exact - least).abs() > 2e-2 * least  # values are rounded to bfloat16
        kept = torch.zeros_like(clear)
        kept[found] = True
        assert torch.equal(kept[clear], exact[clear] > least)
    assert offsets[-1] - offsets[-2] > 100


def test_products() -> None:
    """Rows of W and gradients beyond 2**31, and more products than that."""
    W = torch.empty(MANY, WIDE, dtype=torch.bfloat16).normal_()
    X = torch.randn(TOKENS, WIDE).bfloat16()
    indices = torch.randint(0, MANY, (TOKENS, SLOTS), dtype=torch.int32)
    indices[-1, -3:] = torch.tensor([MANY - 1, MANY - 2, 0], dtype=torch.int32)
    values = torch.randn(TOKENS, SLOTS).bfloat16()
    assert W.numel() > 2**31
    assert TOKENS * SLOTS * WIDE > 2**31
    y, dots = ops.spmm(values, indices, None, W, **ON), ops.sddmm(X, W, indices, None, values, **ON)
    for row in SAMPLE:
        rows = W[indices[row].long()].double()
        assert_close(y[row], values[row].double() @ rows)
        assert_close(dots[row], rows @ X[row].double())
    del W
    back = ops.spmm_t(values, indices, None, X, MANY, **ON)
    for latent in (0, MANY // 2, MANY - 2, MANY - 1, int(indices[5, 5])):
        where = (indices == latent).nonzero()
        expected = (values[where[:, 0], where[:, 1]].double()[:, None] * X[where[:, 0]].double()).sum(0)
        assert_close(back[latent], expected)


def test_adam_rows_of_a_parameter_beyond_2_to_the_31() -> None:
    param = torch.zeros(MANY, WIDE, dtype=torch.bfloat16)
    moments = [torch.zeros(MANY, WIDE) for _ in range(2)]
    rows = torch.tensor([MANY - 1, 3, MANY - 7], dtype=torch.int32)
    grad = torch.ones(3, WIDE, dtype=torch.bfloat16)
    last, rates = torch.zeros(MANY, dtype=torch.int64), torch.full((1,), 0.5, dtype=torch.float64)
    ops.adam_rows(param, *moments, grad, rows, last, rates, 1, 0.9, 0.999, 1e-8, False, False, **ON)
    assert_close(param[rows.long()], torch.full((3, WIDE), -0.5, dtype=torch.float64))
    assert int((param != 0).any(1).sum()) == 3
