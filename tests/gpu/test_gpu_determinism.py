"""The same bits from run to run at a real size, with latents as skewed as they come."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.compare import assert_same
from torch import Tensor

from bench.gpu.problem import CASES, Problem

ops = torch.ops.sae_kernels
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
ON = {"backend": "triton"}


def differentiated(run: Callable[..., object], *leaves: Tensor) -> list[Tensor]:
    """Every output, and the gradient of every leaf."""
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = run(*fresh)
    outputs = list(out) if isinstance(out, (list, tuple)) else [out]
    wanted = [t for t in outputs if t.requires_grad]
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) for t in wanted]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(wanted, fresh, cotangents)]


def adam(problem: Problem) -> list[Tensor]:
    size = problem.size
    state = [problem.W_dec.clone(), *(torch.zeros(size.d_sae, size.d) for _ in range(2))]
    rows = torch.arange(size.d_sae - 1, 0, -3, dtype=torch.int32)
    last, rates = torch.zeros(size.d_sae, dtype=torch.int64), torch.full((4,), 1e-3, dtype=torch.float64)
    grad = problem.W_enc[: rows.numel()]
    ops.adam_rows(*state, grad, rows, last, rates, 4, 0.9, 0.999, 1e-8, True, True, **ON)
    return [*state, last]


def top_n(problem: Problem) -> list[Tensor]:
    best = [torch.full((problem.size.d_sae, 8), -float("inf")), torch.full((problem.size.d_sae, 8), -1)]
    ops.latent_topn(*best, problem.codes.values, problem.codes.indices, None, 0, **ON)
    return best


def run(op: str, problem: Problem) -> list[Tensor]:
    """One op, forward and backward."""
    size, indices = problem.size, problem.codes.indices
    x, W, b = problem.x, problem.W_enc, problem.b_enc
    values, W_dec, X = problem.codes.values, problem.W_dec, problem.cotangent
    everyone = torch.empty(0, dtype=torch.bool)
    ends = [size.d_sae // 8, size.d_sae]
    calls: dict[str, Callable[[], list[Tensor]]] = {
        "spmm": lambda: differentiated(lambda v, W: ops.spmm(v, indices, None, W, **ON), values, W_dec),
        "spmm_t": lambda: differentiated(lambda v, X: ops.spmm_t(v, indices, None, X, size.d_sae, **ON), values, X),
        "sddmm": lambda: differentiated(lambda X, W: ops.sddmm(X, W, indices, None, values, **ON), X, W_dec),
        "transpose": lambda: list(ops.transpose(indices, None, size.d_sae, **ON)),
        "prefix_decode": lambda: differentiated(
            lambda v, W: ops.prefix_decode(v, indices, None, W, ends, **ON), values, W_dec
        ),
        "topk": lambda: list(ops.topk(problem.normal(size.n, size.d_sae, seed=9), size.k, **ON)),
        "linear_topk": lambda: differentiated(
            lambda x, W, b: ops.linear_topk(x, W, b, [size.k], [True], [everyone], **ON), x, W, b
        ),
        "linear_threshold": lambda: differentiated(
            lambda x, W, b: ops.linear_threshold(x, W, b, torch.tensor(problem.theta), **ON), x, W, b
        ),
        "linear_batch_topk": lambda: differentiated(
            lambda x, W, b: ops.linear_batch_topk(x, W, b, size.n * size.k, True, **ON), x, W, b
        ),
        "adam_rows": lambda: adam(problem),
        "latent_topn": lambda: top_n(problem),
    }
    return calls[op]()


OPS = [
    *("spmm", "spmm_t", "sddmm", "transpose", "prefix_decode", "adam_rows", "latent_topn"),
    *("topk", "linear_topk", "linear_threshold", "linear_batch_topk"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("op", OPS)
def test_two_runs_give_the_same_bits(op: str, dtype: torch.dtype) -> None:
    problem = Problem(CASES["A"], dtype, "zipf", torch.device("cuda"))
    first = run(op, problem)
    for other in (run(op, problem), run(op, problem)):
        for mine, theirs in zip(first, other, strict=True):
            assert_same(mine, theirs)
