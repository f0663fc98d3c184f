"""What surrounds the loss: initial weights, unit norm, the parallel gradient, and that training learns."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close
from support.planted import train

import sae_kernels as sk
from bench import cases


@pytest.mark.usefixtures("one_thread")
def test_a_topk_coder_learns(backend: str) -> None:
    with sk.use(backend):
        coder = sk.create("topk", d_in=16, d_sae=48, k=4, seed=0)
        before, after = train(coder)
    assert after < 0.2 < before
    assert_close(coder.W_dec.detach().norm(dim=1), torch.ones(48, dtype=torch.float64))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_a_transcoder_learns(backend: str, skip: bool) -> None:
    mix = cases.normal(16, 10, seed=5, scale=0.25)
    with sk.use(backend):
        coder = sk.create("transcoder", d_in=16, d_sae=48, k=4, d_target=10, skip=skip, seed=0)
        before, after = train(coder, lambda x: (x @ mix).relu())
    assert before == pytest.approx(1, abs=0.05), "it starts from the mean as its prediction"
    assert after < (0.25 if skip else 0.4)


def test_initial_weights() -> None:
    coder = sk.create("topk", d_in=8, d_sae=20, k=3, seed=1)
    assert torch.equal(coder.W_enc, coder.W_dec / 2)
    assert_close(coder.W_dec.detach().norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert not coder.b_enc.any()
    x = cases.normal(50, 8) + 3
    coder.initialise(x, x)
    assert_close(coder.b_dec.detach(), x.double().mean(0))
    transcoder = sk.create("transcoder", d_in=8, d_sae=20, k=3, skip=True, seed=1)
    assert not transcoder.W_dec.any()
    assert not transcoder.W_skip.any()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]


def test_a_seed_decides_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (sk.create("topk", d_in=8, d_sae=20, k=3, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.W_enc, second.W_enc)
    assert not torch.equal(first.W_enc, sk.create("topk", d_in=8, d_sae=20, k=3, seed=2).W_enc)


def test_the_parallel_gradient_is_removed_and_rows_come_back_to_unit_norm() -> None:
    coder = sk.create("topk", d_in=8, d_sae=20, k=3, seed=0)
    gradient = cases.normal(20, 8, seed=3)
    with torch.no_grad():
        coder.W_dec.mul_(3)
    coder.W_dec.grad = gradient.clone()
    coder.before_step()
    unit = torch.nn.functional.normalize(coder.W_dec.detach(), dim=1)
    assert (coder.W_dec.grad * unit).sum(1).abs().max() < 1e-6
    assert_close(coder.W_dec.grad, (gradient - (gradient * unit).sum(1, keepdim=True) * unit).double())
    coder.after_step()
    assert_close(coder.W_dec.detach(), unit.double())


def test_without_normalisation_decoder_and_gradient_stay() -> None:
    coder = sk.create("topk", d_in=8, d_sae=20, k=3, seed=0, normalize_decoder=False)
    with torch.no_grad():
        coder.W_dec.mul_(3)
    coder.W_dec.grad = torch.ones(20, 8)
    before = coder.W_dec.detach().clone()
    coder.before_step()
    coder.after_step()
    assert (coder.W_dec.grad == 1).all()
    assert torch.equal(coder.W_dec, before)


def test_leading_shapes_dtypes_and_edited_codes() -> None:
    coder = sk.create("transcoder", d_in=8, d_sae=20, k=3, d_target=5, skip=True, dtype=torch.bfloat16)
    x = cases.normal(2, 3, 8, dtype=torch.bfloat16)
    y = coder(x)
    assert (y.shape, y.dtype) == ((2, 3, 5), torch.bfloat16)
    codes = coder.encode(x)
    nothing = codes.with_values(torch.zeros_like(codes.values))
    assert torch.equal(coder.reconstruct(nothing, x), coder.b_dec + x @ coder.W_skip.mT)  # pyright: ignore
