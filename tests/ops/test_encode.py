"""`encode`: shapes, selections, autocast-free behaviour of the public face."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

import sae_kernels as sk
from bench import cases

SIZE = cases.ORDINARY


@pytest.fixture
def weights(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    W, b, _, _ = cases.dictionary(SIZE)
    return W, b


@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("selection", [sk.TopK(4), sk.Threshold(0.5), sk.BatchTopK(4)], ids=lambda s: type(s).__name__)
def test_leading_shapes_are_kept(backend: str, weights: tuple, lead: tuple[int, ...], selection: sk.TopK) -> None:
    W, b = weights
    x = cases.normal(*lead, SIZE.d)
    codes = sk.encode(x, W, b, selection, backend=backend)
    assert codes.lead_shape == lead
    assert codes.d_sae == SIZE.d_sae
    assert codes.l0().shape == lead
    if codes.offsets is None:
        assert codes.values.shape == (*lead, 4)
    y = sk.decode(codes, W, backend=backend)
    assert y.shape == (*lead, SIZE.d)
    whole = codes.dense()
    assert whole.shape == (*lead, SIZE.d_sae)
    assert_close(y.reshape(-1, SIZE.d), whole.reshape(-1, SIZE.d_sae).double() @ W.double())


def test_an_integer_is_a_top_k(backend: str, weights: tuple) -> None:
    x = cases.normal(5, SIZE.d)
    mine, full = sk.encode(x, *weights, 4, backend=backend), sk.encode(x, *weights, sk.TopK(4), backend=backend)
    assert_same(mine.values, full.values)
    assert_same(mine.indices, full.indices)


def test_a_tuple_of_all_kinds(backend: str, weights: tuple) -> None:
    x = cases.normal(5, SIZE.d)
    mask = torch.arange(SIZE.d_sae) < 20
    wanted = (sk.Threshold(0.5), sk.TopK(3), sk.BatchTopK(2), sk.TopK(6, among=mask, relu=False), 9)
    several = sk.encode(x, *weights, wanted, backend=backend)
    assert isinstance(several, tuple)
    for codes, each in zip(several, wanted, strict=True):
        alone = sk.encode(x, *weights, each, backend=backend)
        torch.testing.assert_close(codes.values, alone.values)  # a pass over several may sum in another order
        assert_same(codes.indices, alone.indices)
    assert (several[3].indices < 20).all()
    assert len(sk.encode(x, *weights, (sk.TopK(2),), backend=backend)) == 1


def test_relu_and_signs(backend: str, weights: tuple) -> None:
    W, b = weights
    x = cases.normal(5, SIZE.d)
    signed = sk.encode(x, W, b - 3, sk.TopK(200, relu=False), backend=backend)
    clipped = sk.encode(x, W, b - 3, sk.TopK(200), backend=backend)
    assert (signed.values < 0).any()
    assert torch.equal(clipped.dense(), signed.dense().relu())
    assert torch.equal(clipped.l0(), (signed.values > 0).sum(-1))


def test_threshold_takes_numbers_and_tensors(backend: str, weights: tuple) -> None:
    W, b = weights
    x = cases.normal(5, SIZE.d)
    z = dense.pre_acts(x, W, b)
    each = cases.normal(SIZE.d_sae, seed=4).abs()
    for theta in (0, 0.5, torch.tensor(0.5), each, each.double(), each.to(torch.bfloat16)):
        codes = sk.encode(x, W, b, sk.Threshold(theta), backend=backend)
        keep = z > (theta.float() if isinstance(theta, torch.Tensor) else theta)
        assert torch.equal(codes.l0(), keep.sum(1))
        assert torch.equal(codes.dense() != 0, keep)


def test_theta_gets_no_gradient(backend: str, weights: tuple) -> None:
    theta = torch.full((SIZE.d_sae,), 0.1, requires_grad=True)
    W = weights[0].clone().requires_grad_()
    sk.encode(cases.normal(5, SIZE.d), W, None, sk.Threshold(theta), backend=backend).values.sum().backward()
    assert theta.grad is None
    assert W.grad is not None


def test_a_transposed_encoder_comes_as_a_view(backend: str, dtype: torch.dtype) -> None:
    """SAELens keeps W_enc as (d_in, d_sae)."""
    x = cases.integers(5, 12, dtype=dtype)
    stored = cases.integers(12, 40, dtype=dtype, seed=1)
    mine, plain = (sk.encode(x, W, None, 6, backend=backend) for W in (stored.mT, stored.mT.contiguous()))
    assert_same(mine.indices, plain.indices)
    assert_same(mine.values, plain.values, signed_zeros=False)


def test_batch_topk_counts_over_the_whole_batch(backend: str, weights: tuple) -> None:
    x = cases.normal(2, 6, SIZE.d)
    x[0] *= 10  # the first half has all the large pre-acts
    codes = sk.encode(x, *weights, sk.BatchTopK(5), backend=backend)
    assert codes.values.numel() == 60
    assert codes.l0()[0].sum() > codes.l0()[1].sum()


@pytest.mark.parametrize("selection", [sk.TopK(1), sk.Threshold(0.0), sk.BatchTopK(1)], ids=lambda s: type(s).__name__)
def test_one_latent_one_token_one_width(backend: str, dtype: torch.dtype, selection: sk.TopK) -> None:
    one = torch.ones(1, 1, dtype=dtype)
    codes = sk.encode(one, one * 3, one[0], selection, backend=backend)
    assert codes.dense().tolist() == [[4]]
    assert sk.decode(codes, one * 2, one[0], backend=backend).tolist() == [[9]]


def test_topk_of_scores_keeps_leading_shapes(backend: str) -> None:
    scores = cases.normal(2, 3, 50)
    values, indices = sk.topk(scores, 5, backend=backend)
    assert values.shape == indices.shape == (2, 3, 5)
    assert torch.equal(values.sort(-1, descending=True).values, scores.topk(5).values)
    values, _ = sk.topk(scores[0, 0], 5, backend=backend)
    assert values.shape == (5,)
