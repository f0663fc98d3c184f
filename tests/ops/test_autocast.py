"""Inside `torch.autocast` everything is cast to its dtype first, and gradients come back in the leaves' own."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close, assert_same

import sae_kernels as sk
from bench import cases

SIZE = cases.Size(9, 21, 67, 7)
SELECTIONS = {"topk": sk.TopK(7), "threshold": sk.Threshold(0.5), "batch_topk": sk.BatchTopK(7)}


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_forward_and_backward(backend: str, name: str, autocast: torch.dtype) -> None:
    W_enc, b_enc, W_dec, b_dec = cases.dictionary(SIZE)
    leaves = [t.requires_grad_() for t in (cases.normal(SIZE.n, SIZE.d), W_enc, b_enc, W_dec, b_dec)]
    cast = [t.detach().to(autocast).requires_grad_() for t in leaves]

    def step(x, W_enc, b_enc, W_dec, b_dec):
        codes = sk.encode(x, W_enc, b_enc, SELECTIONS[name], backend=backend)
        return codes, sk.decode(codes, W_dec, b_dec, backend=backend)

    with torch.autocast(torch.get_default_device().type, autocast):
        codes, y = step(*leaves)
    plain_codes, plain = step(*cast)
    assert codes.values.dtype == y.dtype == autocast
    assert_same(codes.indices, plain_codes.indices)
    assert_same(y, plain)
    y.float().sum().backward()
    plain.float().sum().backward()
    for leaf, other in zip(leaves, cast, strict=True):
        assert leaf.grad is not None
        assert other.grad is not None
        assert leaf.grad.dtype == torch.float32
        assert_close(leaf.grad, other.grad.double(), factor=1e-3)


def test_parameters_may_differ_in_dtype_there(backend: str) -> None:
    """Master weights in float32, activations in bfloat16: what mixed training has."""
    W, b, _, _ = cases.dictionary(SIZE)
    x = cases.normal(5, SIZE.d, dtype=torch.bfloat16)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert sk.encode(x, W, b, 4, backend=backend).values.dtype == torch.bfloat16


def test_float64_is_left_alone_and_autocast_off_changes_nothing(backend: str) -> None:
    W, b, _, _ = cases.dictionary(SIZE)
    x = cases.normal(5, SIZE.d)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=False):
        assert sk.encode(x, W, b, 4, backend=backend).values.dtype == torch.float32
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert sk.encode(x.double(), W.double(), b.double(), 4, backend="reference").values.dtype == torch.float64
