"""Latents that write to several layers: crosscoders and cross-layer transcoders, against dense arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.tiny_lm import tiny_lm
from torch import Tensor

import sae_kernels as sk
from sae_kernels.adapters import HuggingFaceModel
from sae_kernels.architectures import SparseCoder
from sae_kernels.architectures.clt import CrossLayerTranscoder
from sae_kernels.errors import AdapterError, ArgumentError, ShapeError
from sae_kernels.steer import Ablate, Add, Clamp, Edit, Scale, steer

L, D, D_SAE = 3, 16, 48
RESIDUAL = tuple(f"model.layers.{layer}" for layer in range(L))
MLPS = tuple(f"model.layers.{layer}.mlp" for layer in range(L))
AT_RESIDUAL, AT_MLPS = (RESIDUAL, RESIDUAL), (tuple(f"{point}:in" for point in MLPS), MLPS)
EDITS: dict[str, list[Edit]] = {
    "add": [Add(5, 2.5)],
    "clamp": [Clamp(5, 9.0)],
    "scale": [Scale(1, 3.0)],
    "ablate many": [Ablate(latent) for latent in range(0, 48, 3)],
    "in order": [Clamp(17, 2.0), Scale(17, 3.0), Add(17, 1.0)],
    "layer after layer": [Add(2, -1.0), Ablate(3), Clamp(20, 5.0), Scale(40, 0.5), Clamp(47, 2.0)],
    "the last layer alone": [Clamp(45, 4.0)],
}
edits_of = pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)


def crosscoder() -> SparseCoder:
    coder = sk.create("crosscoder", d_in=L * D, d_sae=D_SAE, n_layers=L, sparsity_coefficient=0.1, seed=0)
    torch.nn.init.normal_(coder.W_dec, std=0.5)
    torch.nn.init.normal_(coder.b_dec)
    return coder


def topk() -> SparseCoder:
    return sk.create("topk", d_in=L * D, d_sae=D_SAE, k=20, seed=0)


class Normed(sk.create("topk", d_in=8, d_sae=8, k=1).__class__):
    """A decoder that is not linear in the codes alone."""

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        return self.decode(codes).tanh() * x.norm(dim=-1, keepdim=True) / 4


def normed() -> SparseCoder:
    return Normed(topk().config)


def clt() -> CrossLayerTranscoder:
    coder = sk.create("clt", d_in=L * D, d_sae=D_SAE, n_layers=L, sparsity_coefficient=0.1, seed=0, skip=True)
    assert isinstance(coder, CrossLayerTranscoder)
    for parameter in coder.W_dec_from:
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        coder.log_theta.fill_(-2.0)
    return coder


@pytest.fixture(scope="module")
def ids() -> Tensor:
    model = tiny_lm()
    return torch.cat([torch.tensor([0]), model.tokenize("hello, world: it works")]).view(1, -1)


@torch.no_grad()
def delta(coder: SparseCoder, x: Tensor, edits: Sequence[Edit]) -> Tensor:
    """ŷ(edited) − ŷ, dense."""
    acts = coder.encode(x).dense()
    edited = acts.clone()
    for edit in edits:
        edited[..., edit.latent] = edit.apply(edited[..., edit.latent])
    after, before = (coder.reconstruct(sk.SparseCodes.from_dense(f), x) for f in (edited, acts))
    return after - before


def added(parts: Sequence[Tensor]) -> dict[str, Any]:
    return {point: lambda y, part=part: y + part for point, part in zip(RESIDUAL, parts, strict=True)}


def residual(ids: Tensor) -> Tensor:
    seen = tiny_lm().activations(ids, RESIDUAL)
    return torch.cat([seen[point] for point in RESIDUAL], dim=-1)


@edits_of
@pytest.mark.parametrize("make", [crosscoder, topk, normed])
def test_codes_of_all_layers_come_from_the_model_as_it_is(make: Any, edits: list[Edit], ids: Tensor) -> None:
    model, coder = tiny_lm(), make()
    before, parts = model.logits(ids), delta(coder, residual(ids), edits).chunk(L, dim=-1)
    with model.intervene(added(parts)):
        expected, in_between = model.logits(ids), residual(ids)
    assert not torch.allclose(expected, before, atol=1e-3), "the edit says nothing"
    with steer(model, coder, AT_RESIDUAL, edits):
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(residual(ids), in_between, rtol=1e-3, atol=1e-3)  # from a pass that ends early
        torch.testing.assert_close(model.logits(ids[0]), expected[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(model.logits(ids), before)


@torch.no_grad()
def by_hand(coder: CrossLayerTranscoder, ids: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Logits with each layer's edits computed where it is passed, every decoder vector by itself."""
    changes: dict[int, Tensor] = {}

    def read(x: Tensor, layer: int) -> Tensor:
        for latent in range(D_SAE // L * layer, D_SAE // L * (layer + 1)):
            z = x @ coder.W_enc[latent] + coder.b_enc[latent]
            act = torch.where(z > coder.theta[latent], z, 0)
            edited = act
            for edit in edits:
                edited = edit.apply(edited) if edit.latent == latent else edited
            changes[latent] = edited - act
        return x

    def write(y: Tensor, layer: int) -> Tensor:
        for latent, change in changes.items():
            y = y + change[..., None] * coder.decoder(latent, layer)
        return y

    replace: dict[str, Any] = {}
    for layer in range(L):
        replace[AT_MLPS[0][layer]] = lambda x, layer=layer: read(x, layer)
        replace[MLPS[layer]] = lambda y, layer=layer: write(y, layer)
    with tiny_lm().intervene(replace):
        return tiny_lm().logits(ids)


@edits_of
def test_a_cross_layer_transcoder_writes_to_its_layer_and_those_behind(edits: list[Edit], ids: Tensor) -> None:
    model, coder = tiny_lm(), clt()
    before, expected = model.logits(ids), by_hand(coder, ids, edits)
    assert not torch.allclose(expected, before, atol=1e-3), "the edit says nothing"
    first = min(coder.layer_of(edit.latent) for edit in edits)
    untouched = model.activations(ids, MLPS)
    with steer(model, coder, AT_MLPS, edits):
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-3, atol=1e-3)
        seen = model.activations(ids, MLPS)
    assert [torch.equal(seen[point], untouched[point]) for point in MLPS] == [layer < first for layer in range(L)]
    assert torch.equal(model.logits(ids), before)


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_what_changes_nothing_changes_no_bit(kind: str, ids: Tensor) -> None:
    coder, points = (crosscoder(), AT_RESIDUAL) if kind == "crosscoder" else (clt(), AT_MLPS)
    with torch.no_grad():
        coder.b_enc[0] = -1e4  # never active, so that ablating it is nothing
    before = tiny_lm().logits(ids)
    for edits in ([], [Scale(3, 1.0)], [Ablate(0)], [Add(2, 0.0)]):
        with steer(tiny_lm(), coder, points, edits):
            assert torch.equal(tiny_lm().logits(ids), before)


def test_adding_alone_reads_nothing_ahead(ids: Tensor) -> None:
    model, coder = tiny_lm(), crosscoder()
    coder.encode = lambda x: pytest.fail("encoded")
    passes: list[int] = []
    counted = model.module.register_forward_hook(lambda *_: passes.append(1))
    with steer(model, coder, AT_RESIDUAL, [Add(5, 1.0), Add(6, 1.0)]):
        found = model.logits(ids)
    counted.remove()
    assert len(passes) == 1
    with model.intervene(added((coder.W_dec[5] + coder.W_dec[6]).detach().chunk(L))):
        torch.testing.assert_close(found, model.logits(ids), rtol=1e-4, atol=1e-4)


def read_anew(model: HuggingFaceModel, prompt: str, n: int) -> str:
    """The likeliest continuation, without a cache."""
    ids = torch.cat([torch.tensor([0]), model.tokenize(prompt)])
    first = len(ids)
    for _ in range(n):
        token = model.logits(ids)[-1].argmax().view(1)
        if int(token) == model.eos_id:
            break
        ids = torch.cat([ids, token])
    return model.detokenize(ids[first:])


@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
def test_text_is_generated_as_if_it_were_read_anew_for_each_token(kind: str) -> None:
    """With two caches: that of the steered model, and that of the one that is read ahead."""
    model = tiny_lm()
    coder, points = (crosscoder(), AT_RESIDUAL) if kind == "crosscoder" else (clt(), AT_MLPS)
    prompt, n = "The bridge", 8
    before = model.generate(prompt, n, temperature=0)
    with steer(model, coder, points, [Clamp(5, 6.0), Scale(20, 2.0)]):
        found = model.generate(prompt, n, temperature=0)
        again = model.generate(prompt, n, temperature=0)
        assert found == again == read_anew(model, prompt, n)
    assert found != before
    assert model.generate(prompt, n, temperature=0) == before


def test_one_in_another_is_read_from_the_model_that_the_outer_one_steers(ids: Tensor) -> None:
    model, outer, inner = tiny_lm(), crosscoder(), topk()
    first, second = [Clamp(5, 9.0)], [Clamp(7, 6.0), Ablate(11)]
    a = added(delta(outer, residual(ids), first).chunk(L, dim=-1))
    with model.intervene(a):
        b = added(delta(inner, residual(ids), second).chunk(L, dim=-1))
        with model.intervene(b):
            expected = model.logits(ids)
    prompt = "a b c"
    with steer(model, outer, AT_RESIDUAL, first), steer(model, inner, AT_RESIDUAL, second):
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-3, atol=1e-3)
        assert model.generate(prompt, 5, temperature=0) == read_anew(model, prompt, 5)


class Unread:
    """A language model that cannot be read ahead."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self.logits, self.intervene, self.d_of = model.logits, model.intervene, model.d_of


def test_a_model_that_cannot_be_read_ahead(ids: Tensor) -> None:
    model: Any = Unread(tiny_lm())
    coder = crosscoder()
    with (
        pytest.raises(ArgumentError, match="Unread cannot be read ahead"),
        steer(model, coder, AT_RESIDUAL, Ablate(0)),
    ):
        pass
    with steer(tiny_lm(), coder, AT_RESIDUAL, Add(0, 1.0)):
        expected = tiny_lm().logits(ids)
    with steer(model, coder, AT_RESIDUAL, Add(0, 1.0)):
        assert torch.equal(model.logits(ids), expected)
    with steer(model, clt(), AT_MLPS, Ablate(0)):
        model.logits(ids)


def test_a_cache_from_before_is_refused(ids: Tensor) -> None:
    model = tiny_lm()
    with torch.no_grad():
        cache = model.module(input_ids=ids, use_cache=True).past_key_values
        steered = steer(model, crosscoder(), AT_RESIDUAL, Ablate(0))
        with steered, pytest.raises(AdapterError, match="cache that was made before"):
            model.module(input_ids=ids[:, -1:], use_cache=True, past_key_values=cache)


UNFIT = {
    "widths": (lambda: crosscoder(), RESIDUAL[:2], ShapeError, "have 16 features, the coder maps 48 to 48"),
    "no pair": (lambda: crosscoder(), RESIDUAL, ArgumentError, "expected a hook point or a pair"),
    "layers": (
        lambda: sk.create("crosscoder", d_in=32, d_sae=8, n_layers=4, sparsity_coefficient=0.1),
        (RESIDUAL[:2], RESIDUAL[:2]),
        ShapeError,
        "4 layers of like width, found .16, 16. in",
    ),
    "order": (lambda: clt(), (MLPS, AT_MLPS[0]), AdapterError, "is passed before"),
}


@pytest.mark.parametrize(("make", "points", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit(make: Any, points: Any, error: type[Exception], message: str, ids: Tensor) -> None:
    with pytest.raises(error, match=message), steer(tiny_lm(), make(), points, Ablate(0)):
        tiny_lm().logits(ids)
