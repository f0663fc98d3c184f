"""`prefix_decode` in the interpreter: every configuration, more prefixes than a program takes, rows not looked at."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.compare import assert_close, assert_same

from bench import cases
from sae_kernels.errors import ShapeError
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.prefix_decode import triton as prefix_decode

ops = torch.ops.sae_kernels


@pytest.mark.parametrize("prefixes", [[41], [3, 20, 40], [1, 2, 5, 9, 17, 20, 21, 33, 40, 41]], ids=len)
def test_every_configuration(dtype: torch.dtype, prefixes: list[int]) -> None:
    values, indices, offsets = cases.codes(cases.Size(2, 70, 41, 19), dtype, ragged=True).flat()
    W = cases.normal(41, 70, dtype=dtype)
    truth = dense.prefix_decode(values, indices, offsets, W, prefixes)
    for config in prefix_decode.configs(len(prefixes), 70, W.itemsize, aligned=False):
        with tuning.forced("prefix_decode", config):
            assert_close(ops.prefix_decode(values, indices, offsets, W, prefixes, backend="triton"), truth)


def test_a_prefix_sees_no_infinity_of_a_latent_beyond_it() -> None:
    W = torch.ones(4, 3)
    W[2] = float("inf")
    indices = torch.tensor([[0, 2]], dtype=torch.int32)
    found = ops.prefix_decode(torch.ones(1, 2), indices, None, W, [2, 4], backend="triton")
    assert_same(found[:, 0], torch.tensor([[1.0] * 3, [float("inf")] * 3]))


@pytest.mark.parametrize("prefixes", [[2, 5], [3, 2], [2, 2], [-1, 2], [0, 0]], ids=str)
def test_prefixes_that_do_not_rise_within_the_dictionary(prefixes: list[int]) -> None:
    indices = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ShapeError, match="rise strictly, up to at most 4"):
        ops.prefix_decode(torch.ones(1, 1), indices, None, torch.ones(4, 3), prefixes, backend="triton")


def test_no_prefixes_and_an_empty_one() -> None:
    args = (torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int32), None, torch.ones(4, 3))
    assert ops.prefix_decode(*args, [], backend="triton").shape == (0, 2, 3)
    assert_same(ops.prefix_decode(*args, [0, 1], backend="triton"), torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
