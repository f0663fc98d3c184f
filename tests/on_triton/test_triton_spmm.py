"""`spmm` in the interpreter: every configuration, rows that are views, what happens past the checks of the host."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.spmm import triton as spmm

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("d", [5, 300])
def test_every_configuration(dtype: torch.dtype, d: int) -> None:
    values, indices, offsets = cases.codes(cases.Size(3, d, 41, 19), dtype, ragged=True, seed=d).flat()
    W = cases.normal(41, d, dtype=dtype)
    truth = dense.spmm(values, indices, offsets, W)
    for config in spmm.configs(41, d, W.itemsize, aligned=False):
        with tuning.forced("spmm", config):
            assert_close(ops.spmm(values, indices, offsets, W, backend="triton"), truth)


@pytest.mark.parametrize(("d_sae", "first"), [(100, 256), (65_536, 128), (131_072, 64), (10**7, 64)])
def test_the_first_choice_keeps_a_slab_in_the_cache_or_is_a_line_wide(d_sae: int, first: int) -> None:
    assert spmm.configs(d_sae, 2304, 2, aligned=True)[0].tiles["BLOCK_D"] == first


def test_unchecked_indices_give_nan_and_touch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the host does not look at them."""
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.interpreting", lambda: False)
    values = torch.ones(3, 2)
    indices = torch.tensor([[0, 1], [2, 2**31 - 1], [-1, 3]], dtype=torch.int32)
    out = ops.spmm(values, indices, None, torch.ones(4, 3), backend="triton")
    assert_same(out[0], torch.full((3,), 2.0))
    assert out[1:].isnan().all()
    flat = indices[:1].flatten(), torch.tensor([-(2**40), 2**40])
    assert_same(ops.spmm(values[0], *flat, torch.ones(4, 3), backend="triton")[0], torch.full((3,), 2.0))
