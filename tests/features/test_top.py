from __future__ import annotations

import pytest
import torch
from support.tiny_lm import LAYER, MLP, tiny_source
from torch import Tensor

import sae_kernels as sk
from sae_kernels.adapters import ActivationBatch
from sae_kernels.errors import ArgumentError, IndexRangeError, ShapeError
from sae_kernels.features import FeatureTable, top_activations


@pytest.fixture
def sae() -> sk.SparseCoder:
    return sk.create("topk", d_in=16, d_sae=64, k=4, seed=0)


class Rows:
    """A source that reads no text."""

    d_in = d_out = 16
    n_blocks = 1

    def block(self, index: int) -> ActivationBatch:
        x = torch.ones(6, 16)
        return ActivationBatch(x, x)


@torch.no_grad()
def dense_acts(sae: sk.SparseCoder, x: Tensor) -> Tensor:
    return sae.encode(x).dense()


def blocks(source: object, name: str) -> Tensor:
    return torch.cat([getattr(source.block(i), name) for i in range(source.n_blocks)])


@pytest.mark.parametrize("batch_tokens", [7, 4096])
def test_against_a_dense_sort(sae: sk.SparseCoder, batch_tokens: int) -> None:
    source = tiny_source()
    table = top_activations(sae, source, n=5, max_tokens=None, batch_tokens=batch_tokens)
    acts = dense_acts(sae, blocks(source, "input"))
    assert (table.d_sae, table.n, table.n_tokens) == (64, 5, len(acts))
    assert torch.equal(table.firings, (acts != 0).sum(0))
    torch.testing.assert_close(table.sums, acts.double().sum(0))
    torch.testing.assert_close(table.density, (acts != 0).double().mean(0))
    torch.testing.assert_close(table.max_activation, acts.max(0).values)
    for latent in range(64):
        n = min(int(table.firings[latent]), 5)
        torch.testing.assert_close(table.values[latent, :n], acts[:, latent].sort(descending=True).values[:n])
        torch.testing.assert_close(acts[table.tokens[latent, :n], latent], table.values[latent, :n])
        assert (table.tokens[latent, n:] == -1).all()
        assert (table.values[latent, n:] == -torch.inf).all()


def test_labels_say_where_a_token_stands(sae: sk.SparseCoder) -> None:
    source = tiny_source()
    table = top_activations(sae, source, n=3)
    assert table.ids is not None
    assert table.sequence is not None
    assert table.position is not None
    used = table.tokens >= 0
    for name in ("ids", "sequence", "position"):
        label = getattr(table, name)
        assert torch.equal(label[used], blocks(source, name)[table.tokens[used]])
        assert (label[~used] == -1).all()
    assert torch.equal(table.ids[used], source.sequences[table.sequence[used], table.position[used]].long())
    assert not torch.isin(table.ids, torch.tensor([0, 1])).any(), "special tokens are left out"


def test_latents_that_never_fired(sae: sk.SparseCoder) -> None:
    with torch.no_grad():
        sae.b_enc[5] = -1e4
    table = top_activations(sae, tiny_source(), n=2)
    assert float(table.max_activation[5]) == float(table.mean_active[5]) == float(table.density[5]) == 0


def test_a_transcoder() -> None:
    coder = sk.create("transcoder", d_in=16, d_sae=64, k=4, seed=0)
    assert top_activations(coder, tiny_source(f"{MLP}:in", MLP), max_tokens=50).n_tokens == 50


def test_ties_go_to_the_earlier_token_and_no_text_is_no_matter(sae: sk.SparseCoder) -> None:
    table = top_activations(sae, Rows(), n=3)
    fired = table.firings > 0
    assert (table.tokens[fired] == torch.arange(3)).all()
    assert table.ids is table.sequence is table.position is None


def test_it_is_deterministic_and_leaves_the_mode(sae: sk.SparseCoder) -> None:
    sae.train()
    one, two = (top_activations(sae, tiny_source()) for _ in range(2))
    assert sae.training
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.values, two.values)


def test_bad_arguments(sae: sk.SparseCoder) -> None:
    with pytest.raises(ArgumentError, match="n = 0"):
        top_activations(sae, tiny_source(), n=0)
    with pytest.raises(ShapeError, match="32 and 32"):
        top_activations(sae, tiny_source(f"{MLP}.down_proj:in"))
    table: FeatureTable = top_activations(sae, tiny_source(LAYER), max_tokens=5)
    for latent in (-1, 64, 1.0, True):
        with pytest.raises(IndexRangeError, match="from 0 to 63"):
            table.check_latent(latent)
