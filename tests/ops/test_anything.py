"""Shapes, dtypes, layouts and selections drawn at random: the whole path against dense float64, on every backend."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import dense
from support.compare import assert_close, assert_same, best

import sae_kernels as sk
from bench import cases

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
LAYOUT = st.sampled_from(sorted(cases.layouts(torch.zeros(1, 1))))
RANDOM = settings(
    max_examples=12 if os.environ.get("TRITON_INTERPRET") == "1" else 60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@RANDOM
@given(
    n=st.integers(0, 40),
    d=st.integers(1, 70),
    m=st.integers(1, 200),
    k=st.integers(1, 200),
    dtype=DTYPES,
    layouts=st.tuples(LAYOUT, LAYOUT, LAYOUT),
    kind=st.sampled_from(["topk", "masked", "threshold", "batch_topk"]),
    relu=st.booleans(),
    seed=st.integers(0, 5),
)
def test_encode_and_decode(
    backend: str, n: int, d: int, m: int, k: int, dtype: torch.dtype, layouts: tuple, kind: str, relu: bool, seed: int
) -> None:
    """Integers, so that the chosen latents are known exactly and only the decoder's sums are rounded."""
    k = min(k, m)
    x = cases.layouts(cases.integers(n, d, dtype=dtype, seed=seed))[layouts[0]].requires_grad_()
    W = cases.layouts(cases.integers(m, d, dtype=dtype, seed=seed + 10))[layouts[1]].requires_grad_()
    W_dec = cases.layouts(cases.normal(m, d, dtype=dtype, seed=seed + 20))[layouts[2]].requires_grad_()
    z = dense.pre_acts(x.detach(), W.detach(), None)
    mask = cases.some(m, 0.5, seed)
    selection = {
        "topk": sk.TopK(k, relu),
        "masked": sk.TopK(k, relu, among=mask),
        "threshold": sk.Threshold(4.0),
        "batch_topk": sk.BatchTopK(k, relu),
    }[kind]
    chosen = torch.zeros(n, m, dtype=torch.bool)
    if kind in ("topk", "masked"):
        for row, indices in enumerate(dense.top_k_indices(z, k, mask if kind == "masked" else None)):
            chosen[row, indices] = True
    elif kind == "threshold":
        chosen = z > 4
        relu = False
    else:
        chosen.view(-1)[best(z.flatten().tolist(), k * n)] = True
    acts = torch.where(chosen, z.relu() if relu else z, 0)

    codes = sk.encode(x, W, None, selection, backend=backend)
    assert_same(codes.dense().detach(), acts.to(dtype), signed_zeros=False)
    y = sk.decode(codes, W_dec, backend=backend)
    rounded = acts.to(dtype).double()
    assert_close(y.detach(), rounded @ W_dec.detach().double())
    cotangent = cases.normal(n, d, dtype=dtype, seed=30)
    grads = torch.autograd.grad(y, [x, W, W_dec], cotangent)
    dz = torch.where(acts != 0, cotangent.double() @ W_dec.detach().double().T, 0)
    for found, truth in zip(
        grads,
        (dz @ W.detach().double(), dz.T @ x.detach().double(), rounded.T @ cotangent.double()),
        strict=True,
    ):
        assert_close(found, truth, factor=2)


@RANDOM
@given(
    rows=st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, float("inf"), -float("inf"), float("nan")]),
            min_size=6,
            max_size=6,
        ),
        min_size=1,
        max_size=8,
    ),
    k=st.integers(1, 6),
    repeat=st.integers(1, 40),
)
def test_top_k_of_awkward_scores(backend: str, rows: list[list[float]], k: int, repeat: int) -> None:
    scores = torch.tensor(rows).repeat(1, repeat)
    indices = sk.topk(scores, k, backend=backend)[1]
    assert [sorted(row) for row in indices.tolist()] == [sorted(best(row, k)) for row in scores.tolist()]


@pytest.mark.parametrize("selection", [sk.TopK(3), sk.Threshold(0.0), sk.BatchTopK(3)], ids=lambda s: type(s).__name__)
def test_gradients_of_an_empty_batch_are_zero(backend: str, dtype: torch.dtype, selection: sk.TopK) -> None:
    W_enc, b_enc, W_dec, b_dec = (t.requires_grad_() for t in cases.dictionary(cases.ORDINARY, dtype))
    x = torch.zeros(0, cases.ORDINARY.d, dtype=dtype, requires_grad=True)
    with sk.use(backend):
        codes = sk.encode(x, W_enc, b_enc, selection)
        sk.decode(codes, W_dec, b_dec).sum().backward()
    for leaf in (x, W_enc, b_enc, W_dec, b_dec):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()
