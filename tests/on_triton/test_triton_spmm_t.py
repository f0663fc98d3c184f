"""`spmm_t` in the interpreter: hot latents split in every way, every configuration, unchecked indices."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases
from sae_kernels.kernels._triton import hot, tuning
from sae_kernels.kernels.spmm_t import triton as spmm_t

ops = torch.ops.sae_kernels
ON = {"backend": "triton"}


def split(slots: int):
    """Latents with more slots than this are hot."""
    return tuning.forced("hot", tuning.Config({"SPLIT": slots}))


def uses(counts: list[int], k: int) -> torch.Tensor:
    """(N, k) indices: latent m stands in counts[m] slots, spread over the tokens."""
    flat = torch.tensor([m for m, count in enumerate(counts) for _ in range(count)], dtype=torch.int32)
    return flat[cases.permutation(flat.numel()).long()].reshape(-1, k)


COUNTS = {
    "one inside two windows": [2, 6, 0, 4],
    "two in one window": [1, 5, 5, 1],  # its end and the next one's start
    "from edge to edge": [4, 8, 0, 4],
    "all slots": [0, 0, 24, 0],
    "just cold, just hot": [4, 5, 4, 5, 0, 2],
    "at the end, in part of a window": [1, 1, 0, 11, 0, 5],
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_hot_latents(counts: list[int], dtype: torch.dtype) -> None:
    indices = uses(counts, 1 if sum(counts) % 2 else 2)
    values = cases.normal(*indices.shape, dtype=dtype, seed=3)
    X = cases.normal(indices.shape[0], 3, dtype=dtype, seed=1)
    truth = dense.spmm_t(values, indices, None, X, len(counts))
    with split(4):
        found = ops.spmm_t(values, indices, None, X, len(counts), **ON)
        assert_close(found, truth)
        assert_same(found, ops.spmm_t(values, indices, None, X, len(counts), **ON))


def test_a_split_is_seen() -> None:
    """Sums of a hot latent are made of windows: 1 is lost beside 2**24 unless it is added to others first."""
    values = torch.ones(8, 1)
    values[0] = 2**24
    indices, X = torch.zeros(8, 1, dtype=torch.int32), torch.ones(8, 1)
    one_slot = tuning.Config({"BLOCK_D": 1, "BLOCK_K": 1}, num_warps=1)
    with tuning.forced("spmm_t", one_slot):
        assert ops.spmm_t(values, indices, None, X, 1, **ON).item() == 2**24
        with split(4):
            assert ops.spmm_t(values, indices, None, X, 1, **ON).item() == 2**24 + 4


def test_more_windows_than_a_block_of_the_second_stage() -> None:
    indices = torch.zeros(50, 2, dtype=torch.int32)
    values, X = cases.normal(50, 2, seed=1), cases.normal(50, 5, seed=2)
    with split(2), tuning.forced("combine", tuning.Config({"BLOCK_P": 4, "BLOCK_D": 4})):
        found = ops.spmm_t(values, indices, None, X, 3, **ON)
    assert_close(found, dense.spmm_t(values, indices, None, X, 3))


@pytest.mark.parametrize("d", [1, 6, 300])  # 300: of two slabs
def test_every_configuration(dtype: torch.dtype, d: int) -> None:
    values, indices, offsets = cases.codes(cases.Size(13, d, 5, 4), dtype, "hot", ragged=True).flat()
    X = cases.normal(13, d, dtype=dtype, seed=1)
    truth = dense.spmm_t(values, indices, offsets, X, 5)
    for config in spmm_t.configs(d, X.itemsize, d == 1):
        with tuning.forced("spmm_t", config), split(8):
            assert_close(ops.spmm_t(values, indices, offsets, X, 5, **ON), truth)


def test_scratch_is_bounded() -> None:
    for nnz in (0, 1, 512, 513, 10**6, 10**8, 2**33):
        plan = hot.Hot(nnz, 1, torch.device("meta"))
        assert plan.partials.shape[0] == plan.pieces <= 2 * hot.WINDOWS
        assert nnz <= plan.split or plan.pieces * plan.split >= 2 * nnz
    assert hot.Hot(512, 7, torch.device("meta")).pieces == 0


def test_unchecked_indices_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.checking", lambda: False)
    indices = torch.tensor([[0, -1, 2**31 - 1, 4, 3, -7, 9, 9, 9, 9]], dtype=torch.int32)
    for slots in (2, 512):  # those at the ends fill windows of their own
        with split(slots):
            out = ops.spmm_t(torch.ones(1, 10), indices, None, torch.ones(1, 2), 4, **ON)
        assert out[:, 0].tolist() == [1, 0, 0, 1]
