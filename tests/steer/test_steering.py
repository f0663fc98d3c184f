"""Each edit against the dense formula y + (edit(f) − f) W_dec, on fixed-width and ragged codes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from support.tiny_lm import LAYER, MLP, tiny_lm
from torch import Tensor

import sae_kernels as sk
from sae_kernels.architectures import CoderConfig, SparseCoder
from sae_kernels.errors import AdapterError, ArgumentError, IndexRangeError, ShapeError
from sae_kernels.steer import Ablate, Add, Clamp, Edit, Scale, steer

D, D_SAE = 16, 64
ABOVE = "model.layers.1:in"


@dataclass(frozen=True)
class Config(CoderConfig):
    """No more."""


class Relu(SparseCoder):
    """Ragged codes."""

    Config = Config

    def __init__(self) -> None:
        super().__init__(Config(D, D_SAE))
        self.W_enc = torch.nn.Parameter(torch.randn(D_SAE, D) / 4)
        self.b_enc = torch.nn.Parameter(torch.full((D_SAE,), -0.5))
        self.W_dec = torch.nn.Parameter(torch.randn(D_SAE, D))
        self.b_dec = torch.nn.Parameter(torch.randn(D))

    def encode(self, x: Tensor) -> sk.SparseCodes:
        return sk.encode(x, self.W_enc, self.b_enc, sk.Threshold(0.0))


class Normed(Relu):
    """A decoder that is not linear in the codes alone."""

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        return self.decode(codes).tanh() * x.norm(dim=-1, keepdim=True)


class NormedTopK(Normed):
    """The same on fixed-width codes."""

    def encode(self, x: Tensor) -> sk.SparseCodes:
        return sk.encode(x, self.W_enc, self.b_enc, sk.TopK(5))


def topk() -> SparseCoder:
    return sk.create("topk", d_in=D, d_sae=D_SAE, k=8, seed=0)


def transcoder() -> SparseCoder:
    coder = sk.create("transcoder", d_in=D, d_sae=D_SAE, k=8, skip=True, seed=0)
    for weight in (coder.W_dec, coder.W_skip):
        torch.nn.init.normal_(weight)
    return coder


@pytest.fixture(scope="module")
def ids() -> Tensor:
    model = tiny_lm()
    return torch.cat([torch.tensor([0]), model.tokenize("hello, world: it works")]).view(1, -1)


def seen(point: str, ids: Tensor) -> Tensor:
    return tiny_lm().activations(ids, [point])[point]


@torch.no_grad()
def dense(coder: SparseCoder, x: Tensor, y: Tensor, edits: Sequence[Edit]) -> Tensor:
    acts = coder.encode(x).dense()
    edited = acts.clone()
    for edit in edits:
        edited[..., edit.latent] = edit.apply(edited[..., edit.latent])

    def reconstruct(f: Tensor) -> Tensor:
        return coder.reconstruct(sk.SparseCodes.from_dense(f), x)

    return y + reconstruct(edited) - reconstruct(acts)


EDITS: dict[str, list[Edit]] = {
    "add": [Add(5, 2.5)],
    "clamp": [Clamp(5, 40.0)],
    "clamp one that is rare": [Clamp(63, 4.0)],
    "scale": [Scale(1, 3.0)],
    "ablate many": [Ablate(latent) for latent in range(0, 40, 3)],
    "in order": [Clamp(7, 2.0), Scale(7, 3.0), Add(7, 1.0)],
    "mixed": [Add(0, -1.0), Ablate(1), Clamp(2, 5.0), Scale(3, 0.5)],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("make", [topk, Relu, Normed, NormedTopK])
def test_autoencoders(make: Callable[[], SparseCoder], edits: list[Edit], ids: Tensor) -> None:
    coder = make()
    before = seen(LAYER, ids)
    with steer(tiny_lm(), coder, LAYER, edits):
        after = seen(ABOVE, ids)
    torch.testing.assert_close(after, dense(coder, before, before, edits), rtol=1e-4, atol=1e-4)
    assert torch.equal(seen(LAYER, ids), before)


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_transcoders(edits: list[Edit], ids: Tensor) -> None:
    coder = transcoder()
    x, y = seen(f"{MLP}:in", ids), seen(MLP, ids)
    with steer(tiny_lm(), coder, (f"{MLP}:in", MLP), edits):
        after = seen(MLP, ids)
    torch.testing.assert_close(after, dense(coder, x, y, edits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edits", [[], [Scale(3, 1.0)], [Ablate(0)], [Add(2, 0.0)]], ids=str)
@pytest.mark.parametrize("make", [topk, Relu, Normed])
def test_what_changes_nothing_changes_no_bit(make: Callable[[], SparseCoder], edits: list[Edit], ids: Tensor) -> None:
    coder = make()
    with torch.no_grad():
        coder.b_enc[0] = -1e4  # never active, so that ablating it is nothing
    before = tiny_lm().logits(ids)
    with steer(tiny_lm(), coder, LAYER, edits):
        assert torch.equal(tiny_lm().logits(ids), before)


def test_tokens_without_the_latent_keep_their_bits(ids: Tensor) -> None:
    coder = topk()
    before = seen(LAYER, ids)
    acts = coder.encode(before).dense()
    latent = next(i for i in range(D_SAE) if 0 < int((acts[..., i] != 0).sum()) < acts[..., i].numel())
    with steer(tiny_lm(), coder, LAYER, Ablate(latent)):
        after = seen(ABOVE, ids)
    same = (after == before).all(-1)
    assert torch.equal(same, acts[..., latent] == 0)


def test_the_difference_is_exact_beside_a_large_reconstruction(ids: Tensor) -> None:
    coder = topk()
    with torch.no_grad():
        coder.b_dec.fill_(1e8)
    before = seen(LAYER, ids)
    with steer(tiny_lm(), coder, LAYER, Add(5, 0.125)):
        after = seen(ABOVE, ids)
    torch.testing.assert_close(after, before + 0.125 * coder.W_dec[5].detach())


def test_adding_alone_encodes_nothing(ids: Tensor) -> None:
    coder = topk()
    coder.encode = lambda x: pytest.fail("encoded")
    before = seen(LAYER, ids)
    with steer(tiny_lm(), coder, LAYER, [Add(5, 1.0), Add(6, 1.0)]):
        torch.testing.assert_close(seen(ABOVE, ids), before + (coder.W_dec[5] + coder.W_dec[6]).detach())


def test_a_sequence_without_batch_dimension(ids: Tensor) -> None:
    with steer(tiny_lm(), topk(), LAYER, Clamp(5, 9.0)):
        torch.testing.assert_close(tiny_lm().logits(ids[0]), tiny_lm().logits(ids)[0])


def test_coder_in_bfloat16(ids: Tensor) -> None:
    coder = topk().to(torch.bfloat16)
    before = seen(LAYER, ids)
    with steer(tiny_lm(), coder, LAYER, Add(5, 1.0)):
        after = seen(ABOVE, ids)
    torch.testing.assert_close(after, before + coder.W_dec[5].float().detach())


def test_generation_is_steered_token_by_token() -> None:
    model, coder = tiny_lm(), topk()
    before = model.generate("The bridge", 12, temperature=0)
    with steer(model, coder, LAYER, Clamp(5, 500.0)):
        steered = model.generate("The bridge", 12, temperature=0)
    assert steered != before
    assert model.generate("The bridge", 12, temperature=0) == before


def test_all_is_as_it_was_after_an_error(ids: Tensor) -> None:
    coder = topk().train()
    before = tiny_lm().logits(ids)
    with contextlib.suppress(KeyError), steer(tiny_lm(), coder, LAYER, Ablate(1)):
        assert not coder.training
        raise KeyError
    assert coder.training
    assert torch.equal(tiny_lm().logits(ids), before)


def test_what_does_not_fit(ids: Tensor) -> None:
    model = tiny_lm()
    with pytest.raises(IndexRangeError, match="latent 64"), steer(model, topk(), LAYER, Ablate(64)):
        pass
    with (
        pytest.raises(ArgumentError, match="expected a hook point or a pair"),
        steer(model, topk(), (LAYER,), []),
    ):
        pass
    with (
        pytest.raises(ShapeError, match="32 features, the coder maps 16 to 16"),
        steer(model, topk(), f"{MLP}.down_proj:in", Ablate(0)),
    ):
        pass
    with (
        pytest.raises(AdapterError, match="is passed before"),
        steer(model, transcoder(), (MLP, LAYER), Ablate(0)),
    ):
        model.logits(ids)
