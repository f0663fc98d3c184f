"""`prefix_decode`: nested reconstructions."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
@pytest.mark.parametrize("size", [*cases.SMALL, *cases.EMPTY, cases.ORDINARY], ids=str)
def test_every_size(backend: str, dtype: torch.dtype, size: cases.Size, ragged: bool) -> None:
    values, indices, offsets = cases.codes(size, dtype, ragged=ragged).flat()
    W = cases.normal(size.d_sae, size.d, dtype=dtype)
    prefixes = sorted({1, max(1, size.d_sae // 3), max(1, size.d_sae - 1), size.d_sae})
    found = ops.prefix_decode(values, indices, offsets, W, prefixes, backend=backend)
    assert_close(found, dense.prefix_decode(values, indices, offsets, W, prefixes))


def test_the_whole_dictionary_as_one_prefix_is_a_decode(backend: str, dtype: torch.dtype) -> None:
    values, indices, _ = cases.codes(cases.ORDINARY, dtype).flat()
    W = cases.normal(301, 45, dtype=dtype)
    whole = ops.prefix_decode(values, indices, None, W, [301], backend=backend)[0]
    assert_close(whole, dense.spmm(values, indices, None, W))


def test_latents_beyond_the_last_prefix_count_nowhere(backend: str) -> None:
    values, indices, _ = cases.codes(cases.ORDINARY).flat()
    W = cases.normal(301, 45)
    W[20:] = float("nan")
    found = ops.prefix_decode(values, indices, None, W, [5, 20], backend=backend)
    assert found.isfinite().all()


def test_an_empty_prefix_is_zero(backend: str) -> None:
    values, indices = torch.ones(2, 1), torch.full((2, 1), 5, dtype=torch.int32)
    found = ops.prefix_decode(values, indices, None, torch.ones(6, 3), [2, 6], backend=backend)
    assert_same(found, torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
