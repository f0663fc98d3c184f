"""`transpose` in the interpreter: what happens past the checks of the host, and every configuration."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_same

from bench import cases
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.transpose import triton as transpose

ops = torch.ops.sae_kernels
ON = {"backend": "triton"}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the host does not look at indices and offsets."""
    monkeypatch.setattr("sae_kernels.kernels._triton.inputs.checking", lambda: False)


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("block", [16, 256, 1024])
def test_any_block(block: int, ragged: bool) -> None:
    _, indices, offsets = cases.codes(cases.Size(19, 1, 70, 5), draw="zipf", ragged=ragged).flat()
    expected = ops.transpose(indices, offsets, 70, backend="reference")
    with tuning.forced("transpose", tuning.Config({"BLOCK": block})):
        for mine, theirs in zip(ops.transpose(indices, offsets, 70, **ON), expected, strict=True):
            assert_same(mine, theirs)
    assert {config.tiles["BLOCK"] for config in transpose.CONFIGS} <= {16, 256, 1024}


@pytest.mark.usefixtures("unchecked")
def test_indices_out_of_range_belong_to_no_latent() -> None:
    indices = torch.tensor([[4, -1, 0], [2**31 - 1, 3, -(2**31)], [3, 5, 0]], dtype=torch.int32)
    latent_offsets, order, rows = ops.transpose(indices, None, 5, **ON)
    assert latent_offsets.diff().tolist() == [2, 0, 0, 2, 1]
    first, last = latent_offsets[0], latent_offsets[-1]
    assert order[first:last].tolist() == [2, 8, 4, 6, 0]
    assert torch.equal(rows.long(), order // 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("offsets", [[2, 3], [0, 9, 1], [0, -(2**62), 2**62, 1], [5, 5, 5]])
def test_rows_of_offsets_that_are_no_csr_are_rows(offsets: list[int]) -> None:
    indices = torch.arange(7, dtype=torch.int32)
    _, _, rows = ops.transpose(indices, torch.tensor(offsets), 7, **ON)
    assert rows.min() >= 0
    assert rows.max() < len(offsets) - 1
