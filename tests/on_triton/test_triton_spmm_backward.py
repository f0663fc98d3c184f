"""`spmm_backward` in the interpreter: every configuration and width, hot latents, unchecked indices."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.spmm_backward import triton as spmm_backward

ops = torch.ops.sae_kernels
ON = {"backend": "triton"}


def split(slots: int):
    return tuning.forced("hot", tuning.Config({"SPLIT": slots}))


@pytest.mark.parametrize(("d", "ragged"), [(1, False), (7, True), (600, False)])
def test_every_configuration_with_hot_latents(dtype: torch.dtype, ragged: bool, d: int) -> None:
    values, indices, offsets = cases.codes(cases.Size(11, d, 6, 4), dtype, "hot", ragged=ragged).flat()
    grad, W = cases.normal(11, d, dtype=dtype, seed=1), cases.normal(6, d, dtype=dtype, seed=2)
    for config in spmm_backward.configs(d, W.itemsize):
        with tuning.forced("spmm_backward", config), split(4):
            d_values, dW = ops.spmm_backward(grad, values, indices, offsets, W, **ON)
            assert_close(d_values, dense.sddmm(grad, W, indices, offsets, values))
            assert_close(dW, dense.spmm_t(values, indices, offsets, grad, 6))


@pytest.mark.parametrize("d", [1, 2, 3, 255, 256, 257, 701, 768, 2304, 4096, 6000, 8192])
def test_tiles_hold_the_width_and_little_more(d: int) -> None:
    first, second = spmm_backward.tiles(d)
    assert first <= d <= first + second
    assert first + second < 1.5 * d


def test_a_width_that_no_program_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spmm_backward, "WIDEST", 8)
    monkeypatch.delattr(spmm_backward, "_spmm_backward")
    values, indices, _ = cases.codes(cases.Size(3, 9, 6, 4)).flat()
    grad, W = cases.normal(3, 9, seed=1), cases.normal(6, 9, seed=2)
    d_values, dW = ops.spmm_backward(grad, values, indices, None, W, **ON)
    assert_close(d_values, dense.sddmm(grad, W, indices, None, values))
    assert_close(dW, dense.spmm_t(values, indices, None, grad, 6))


def test_an_empty_slot_reads_nothing() -> None:
    """Neither its row of grad, nor is an infinite row of W multiplied by it."""
    grad, W = torch.ones(2, 5), torch.ones(3, 5)
    grad[1], W[2] = float("nan"), float("inf")
    values = torch.tensor([[1.0, 0.0], [0.0, -0.0]])
    indices = torch.tensor([[0, 2], [0, 2]], dtype=torch.int32)
    d_values, dW = ops.spmm_backward(grad, values, indices, None, W, **ON)
    assert d_values.tolist() == [[5, 0], [0, 0]]
    assert dW.sum(1).tolist() == [5, 0, 0]


def test_unchecked_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.checking", lambda: False)
    indices = torch.tensor([[0, -1, 2**31 - 1, 4, 3]], dtype=torch.int32)
    d_values, dW = ops.spmm_backward(torch.ones(1, 2), torch.ones(1, 5), indices, None, torch.ones(4, 2), **ON)
    assert_same(d_values, torch.tensor([[2.0, *[float("nan")] * 3, 2.0]]))
    assert dW[:, 0].tolist() == [1, 0, 0, 1]
