"""The suite's net against dense tensors: does one show, wherever it is made?"""

from __future__ import annotations

import pytest
import torch
from support.no_dense import D, M, N, NoDense, step_without_dense
from torch import Tensor

import sae_kernels as sk
from bench import cases

pytestmark = pytest.mark.usefixtures("one_thread")


class DenseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * torch.ones(N, M)[:, :D].contiguous()


@pytest.mark.parametrize("coder", ["topk", "transcoder"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_a_step_on_the_kernels_passes(cpu: str, coder: str, autocast: torch.dtype | None) -> None:
    made = sk.create(coder, d_in=D, d_sae=M, k=8, seed=0, **({"skip": True} if coder == "transcoder" else {}))
    dead = torch.arange(M) % 3 == 0
    with sk.use(cpu):
        watch = step_without_dense(made, cases.normal(N, D), dead=dead, steps=2, autocast=autocast)
    assert watch.largest >= M * D, "it did not even see a parameter's gradient"


def test_the_kernels_are_looked_into() -> None:
    coder = sk.create("topk", d_in=D, d_sae=M, k=8, seed=0)
    with sk.use("reference"), pytest.raises(AssertionError, match="a dense tensor has"):
        step_without_dense(coder, cases.normal(N, D))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_a_dense_tensor_shows(dtype: torch.dtype) -> None:
    with NoDense(N, M), pytest.raises(AssertionError, match=r"makes \(1024, 8192\)"):
        torch.ones(N, M, dtype=dtype)


def test_one_in_the_backward_shows() -> None:
    x = torch.ones(N, D, requires_grad=True)
    with NoDense(N, M):
        y = DenseBackward.apply(x)
        with pytest.raises(AssertionError, match="a dense tensor has"):
            y.backward()


def test_views_count_with_their_memory() -> None:
    with NoDense(N, M) as watch:
        torch.ones(1).expand(N, M)
        torch.ones(N, M // 2)[:, :1]
    assert watch.largest == N * M // 2


def test_sizes_at_which_scratch_would_be_blamed_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 8388608"):
        NoDense(100, 100)
