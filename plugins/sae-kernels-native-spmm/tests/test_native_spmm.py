"""The plugin builds on the C ABI, agrees with the core, and refuses what it should. Skipped unless installed."""

from __future__ import annotations

import pytest
import torch

import sae_kernels as sk

native = pytest.importorskip("sae_kernels_native_spmm", reason="sae-kernels-native-spmm is not installed")


def test_it_agrees_and_times() -> None:
    codes = sk.SparseCodes(torch.rand(5, 3), torch.randint(0, 20, (5, 3), dtype=torch.int32), 20)
    W = torch.randn(20, 7)
    calls = len(native.seconds)
    assert torch.equal(sk.decode(codes, W, backend="timed"), sk.decode(codes, W, backend="cpu"))
    assert len(native.seconds) == calls + 1


def test_bad_index() -> None:
    codes = sk.SparseCodes(torch.rand(1, 1), torch.full((1, 1), 20, dtype=torch.int32), 20)
    with pytest.raises(IndexError, match="slot 0 holds 20"):
        sk.decode(codes, torch.randn(20, 7), backend="timed")


def test_why_not() -> None:
    codes = sk.SparseCodes(torch.rand(1, 1).half(), torch.zeros(1, 1, dtype=torch.int32), 20)
    assert "needs float32" in str(sk.explain("decode", codes, torch.randn(20, 7).half(), backend="timed"))
