from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support.tiny_lm import LAYER, MLP, tiny_lm, tiny_source
from torch import Tensor
from torch.nn import functional

import sae_kernels as sk
from sae_kernels.adapters import TextActivations
from sae_kernels.architectures import CoderConfig, SparseCoder
from sae_kernels.errors import AdapterError, ArgumentError, ShapeError
from sae_kernels.evaluate import ce_recovered, evaluate


@dataclass(frozen=True)
class Config(CoderConfig):
    """No more."""


class Constant(SparseCoder):
    """Reconstructs every token as b_dec; no latents are ever active."""

    Config = Config
    architecture = "constant"

    def __init__(self, value: float = 0.0, d: int = 16) -> None:
        super().__init__(Config(d, 4))
        self.W_enc = torch.zeros(4, d)
        self.W_dec = torch.zeros(4, d)
        self.b_dec = torch.full((d,), value)
        self.seen: list[Tensor] = []

    def encode(self, x: Tensor) -> sk.SparseCodes:
        return sk.SparseCodes.from_dense(x.new_zeros(len(x), 4))

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.decode(codes)


class Same(Constant):
    """Returns its input."""

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        return x


class Mlp(Constant):
    """Does what the language model's MLP does: the perfect transcoder."""

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        mlp = tiny_lm().module.get_submodule(MLP)  # its parts: its own hooks are the evaluation's
        return mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


@torch.no_grad()
def dense_losses(source: TextActivations, module: str, change: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(CE, KL) with a plain PyTorch hook that changes the rows of tokens that are not special."""
    model, ids = source.model.module, source.sequences.long()
    special = torch.isin(ids, torch.tensor(sorted(source.model.special_ids)))

    def hook(_module: object, _args: object, output: Tensor) -> Tensor:
        first = output if isinstance(output, Tensor) else output[0]
        new = torch.where(special[..., None], first, change(first))
        return new if isinstance(output, Tensor) else (new, *output[1:])

    original = model(ids).logits.double().log_softmax(-1)[:, :-1][~special[:, 1:]]
    handle = model.get_submodule(module).register_forward_hook(hook)
    changed = model(ids).logits.double().log_softmax(-1)[:, :-1][~special[:, 1:]]
    handle.remove()
    labels = ids[:, 1:][~special[:, 1:]]
    kl = (original.exp() * (original - changed)).sum(-1).mean()
    return float(functional.nll_loss(changed, labels)), float(kl)


def test_against_plain_hooks() -> None:
    source = tiny_source()
    sae = sk.create("topk", d_in=16, d_sae=64, k=8, seed=0)
    found = ce_recovered(sae, source, forward_sequences=3)
    ce_orig, _ = dense_losses(source, LAYER, lambda x: x)
    ce_sae, kl_sae = dense_losses(source, LAYER, sae)
    ce_zero, kl_zero = dense_losses(source, LAYER, torch.zeros_like)
    expected = {
        "ce_orig": ce_orig,
        "ce_sae": ce_sae,
        "ce_ablated": ce_zero,
        "ce_recovered": (ce_zero - ce_sae) / (ce_zero - ce_orig),
        "kl_sae": kl_sae,
        "kl_ablated": kl_zero,
        "kl_recovered": 1 - kl_sae / kl_zero,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    special = torch.isin(source.sequences, torch.tensor([0, 1]))
    assert special[:, 1:].any(), "an eos should stand inside a sequence"
    assert found["replaced_tokens"] == int((~special).sum())
    assert found["predicted_tokens"] == int((~special[:, 1:]).sum())
    assert found["sequences"] == len(source.sequences)
    assert found["ablation"] == "zero"
    assert (found["hook_in"], found["hook_out"]) == (LAYER, LAYER)


def test_a_perfect_coder_recovers_all_and_an_empty_one_nothing() -> None:
    source = tiny_source()
    perfect = ce_recovered(Same(), source)
    assert (perfect["ce_recovered"], perfect["kl_recovered"], perfect["kl_sae"]) == (1, 1, 0)
    assert perfect["ce_sae"] == perfect["ce_orig"]
    empty = ce_recovered(Constant(), source)
    assert (empty["ce_recovered"], empty["kl_recovered"]) == (0, 0)
    assert empty["ce_sae"] == empty["ce_ablated"] != empty["ce_orig"]


def test_a_transcoder_is_fed_from_hook_in_and_replaces_hook_out() -> None:
    source = tiny_source(f"{MLP}:in", MLP)
    found = ce_recovered(Mlp(), source)
    assert found["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert found["kl_sae"] < 1e-6
    watching = Constant()
    ce_recovered(watching, source, forward_sequences=1)
    torch.testing.assert_close(
        torch.cat(watching.seen), torch.cat([source.block(i).input for i in range(source.n_blocks)])
    )


def test_one_point_spelt_in_two_ways() -> None:
    source = tiny_source(LAYER, f"{LAYER}:out")
    assert ce_recovered(Same(), source)["ce_recovered"] == 1


def test_mean_ablation() -> None:
    source = tiny_source()
    mean = torch.cat([source.block(i).target for i in range(source.n_blocks)]).double().mean(0)
    found = evaluate(Constant(), source, max_tokens=None, ablation="mean")["language_model"]
    expected, _ = dense_losses(source, LAYER, lambda x: mean.float().expand_as(x))
    assert found["ablation"] == "mean"
    assert found["ce_ablated"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ArgumentError, match="expected `mean`"):
        ce_recovered(Constant(), source, ablation="mean")


def test_evaluate_adds_the_language_model() -> None:
    found = evaluate(sk.create("topk", d_in=16, d_sae=64, k=8, seed=0), tiny_source(), loss_tokens=20)
    assert found["language_model"]["sequences"] == 2, "15 tokens a sequence, so two hold 20"
    assert found["tokens"] > 200
    json.dumps(found, allow_nan=False)


def test_no_effect_is_undefined() -> None:
    """Ablating by what is there already: 0 / 0."""
    source = tiny_source("model.layers.1.post_attention_layernorm")
    with torch.no_grad():
        weight = tiny_lm().module.get_submodule("model.layers.1.post_attention_layernorm").weight
        kept = weight.clone()
        weight.zero_()
    try:
        found = evaluate(Constant(), source)["language_model"]
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert found["ce_recovered"] is None
    assert found["kl_recovered"] is None


def test_the_model_and_the_coder_are_left_as_they_were() -> None:
    source, coder = tiny_source(), Constant()
    before = source.model.logits(source.sequences[:2])
    coder.train()
    ce_recovered(coder, source)
    assert coder.training
    assert torch.equal(source.model.logits(source.sequences[:2]), before)


def test_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="32 features to 32"):
        ce_recovered(Constant(d=32), tiny_source())
    with pytest.raises(AdapterError, match=f"'{LAYER}' is passed before '{MLP}'"):
        ce_recovered(Constant(), tiny_source(MLP, LAYER))
    only_special = TextActivations(tiny_lm(), torch.ones(2, 8, dtype=torch.int32), LAYER)
    with pytest.raises(AdapterError, match="no token to predict"):
        ce_recovered(Constant(), only_special)
    with pytest.raises(ArgumentError, match="ablation = 'noise'"):
        ce_recovered(Constant(), tiny_source(), ablation="noise")
