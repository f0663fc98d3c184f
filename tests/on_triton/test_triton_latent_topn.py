"""`latent_topn` in the interpreter: every configuration, latents of many blocks, long lists."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_same
from torch import Tensor

from bench import cases
from sae_kernels.errors import BackendError, SaeKernelsError
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels.latent_topn import triton as latent_topn

ops = torch.ops.sae_kernels


def empty(d_sae: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.full((d_sae, n), -float("inf")), torch.full((d_sae, n), -1, dtype=torch.int64)


@pytest.mark.parametrize("n", [1, 40, 200])
@pytest.mark.parametrize("order", ["rising", "falling", "ties"])
def test_a_latent_hit_by_every_token(n: int, order: str) -> None:
    """Several blocks of slots, all of which enter, none after the first, or only by their token."""
    values = torch.arange(1.0, 91.0) if order == "rising" else 90 - torch.arange(90.0)
    values = values.div(7, rounding_mode="floor") if order == "ties" else values
    indices = torch.full((90, 1), 1, dtype=torch.int32)
    want = empty(3, n)
    for first in (5, 1000):
        ops.latent_topn(*want, values[:, None], indices, None, first, backend="reference")
    for config in latent_topn.configs(n):
        found = empty(3, n)
        with tuning.forced("latent_topn", config):
            for first in (5, 1000):
                ops.latent_topn(*found, values[:, None], indices, None, first, backend="triton")
        assert_same(found[0], want[0])
        assert_same(found[1], want[1])


def test_batches_in_any_order_give_one_list() -> None:
    batches = [(*cases.codes(cases.Size(9, 1, 4, 5), seed=seed).flat(), 100 * seed) for seed in range(3)]
    found = []
    for order in (batches, batches[::-1]):
        lists = empty(4, 6)
        for values, indices, offsets, first in order:
            ops.latent_topn(*lists, values.round(), indices, offsets, first, backend="triton")
        found.append(lists)
    assert_same(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])


def test_an_activation_of_minus_infinity_ranks_above_no_activation() -> None:
    lists = empty(1, 2)
    ops.latent_topn(
        *lists, torch.tensor([[-float("inf")]]), torch.zeros(1, 1, dtype=torch.int32), None, 7, backend="triton"
    )
    assert lists[1].tolist() == [[7, -1]]


def test_lists_it_declines_or_refuses() -> None:
    codes = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int32), None, 0
    with pytest.raises(BackendError, match="takes up to 256"):
        ops.latent_topn(*empty(3, 257), *codes, backend="triton")
    with pytest.raises(BackendError, match="need to be contiguous"):
        ops.latent_topn(*(each.mT for each in empty(3, 2)), *codes, backend="triton")
    values, tokens = empty(3, 2)
    for wrong in ((values, tokens[:2]), (values, tokens.int()), (values.double(), tokens), (values[0], tokens[0])):
        with pytest.raises(SaeKernelsError):
            ops.latent_topn(*wrong, *codes, backend="triton")
