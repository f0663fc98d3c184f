"""`sddmm` in the interpreter: every configuration, rows of many blocks, what happens past the checks of the host."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.sddmm import triton as sddmm

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("d", [5, 80, 300])
@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
def test_every_configuration(dtype: torch.dtype, ragged: bool, d: int) -> None:
    gate, indices, offsets = cases.codes(cases.Size(2, d, 41, 11), dtype, ragged=ragged, seed=d).flat()
    A, B = cases.normal(2, d, dtype=dtype, seed=1), cases.normal(41, d, dtype=dtype, seed=2)
    truth = dense.sddmm(A, B, indices, offsets, gate)
    for config in sddmm.configs(d, A.itemsize, d % 16 == 0):
        with tuning.forced("sddmm", config):
            assert_close(ops.sddmm(A, B, indices, offsets, gate, backend="triton"), truth)
    assert_close(ops.sddmm(A, B, indices, offsets, None, backend="triton"), dense.sddmm(A, B, indices, offsets, None))


def test_a_row_longer_than_its_programs_expect() -> None:
    """Ragged rows get as many programs as their mean length wants: a long one is looped over."""
    indices = torch.arange(90, dtype=torch.int32) % 7
    offsets = torch.tensor([0] * 20 + [89, 90])
    A, B = cases.normal(21, 3, seed=1), cases.normal(7, 3, seed=2)
    found = ops.sddmm(A, B, indices, offsets, None, backend="triton")
    assert_close(found, dense.sddmm(A, B, indices, offsets, None))


def test_an_empty_slot_reads_neither_row() -> None:
    A, B = torch.full((1, 4), float("nan")), torch.full((2, 4), float("inf"))
    indices, gate = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3)
    assert_same(ops.sddmm(A, B, indices, None, gate, backend="triton"), torch.zeros(1, 3))


def test_unchecked_indices_give_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.interpreting", lambda: False)
    indices = torch.tensor([[0, -1, 2**31 - 1, 4, 3]], dtype=torch.int32)
    out = ops.sddmm(torch.ones(1, 2), torch.ones(4, 2), indices, None, None, backend="triton")
    assert_same(out, torch.tensor([[2.0, *[float("nan")] * 3, 2.0]]))
