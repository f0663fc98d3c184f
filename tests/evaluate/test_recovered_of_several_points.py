"""CE recovered where a coder reads and writes several hook points."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.tiny_lm import TEXTS, tiny_lm
from torch import Tensor
from torch.nn import functional

import sae_kernels as sk
from sae_kernels.adapters import TextActivations, pack
from sae_kernels.architectures import CoderConfig, SparseCoder
from sae_kernels.errors import AdapterError
from sae_kernels.evaluate import ce_recovered, evaluate
from sae_kernels.evaluate.report import table

LAYERS = ("model.layers.0", "model.layers.2")
MLPS = tuple(f"model.layers.{i}.mlp" for i in range(3))


@dataclass(frozen=True)
class Config(CoderConfig):
    """No more."""


class Fake(SparseCoder):
    """Reconstructs by a function of the input; its latents are never active."""

    Config = Config
    architecture = "fake"

    def __init__(self, d: int, change: Any) -> None:
        super().__init__(Config(d, 4))
        self.W_enc = torch.zeros(4, d)
        self.change = change

    def encode(self, x: Tensor) -> sk.SparseCodes:
        return sk.SparseCodes.from_dense(x.new_zeros(len(x), 4))

    def reconstruct(self, codes: sk.SparseCodes, x: Tensor) -> Tensor:
        return self.change(x)


class Mlps(Fake):
    """Does what the language model's MLPs do, layer by layer, or something else in their place."""

    def __init__(self, change: Any = lambda y: y) -> None:
        super().__init__(48, lambda x: x)
        self.n_layers = 3
        self.out = change

    def stream(self) -> Any:
        coder, seen = self, {}

        class Stream:
            def read(self, layer: int, x: Tensor) -> None:
                seen[layer] = x

            def write(self, layer: int) -> Tensor:
                mlp = tiny_lm().module.get_submodule(MLPS[layer])
                x = seen[layer]
                return coder.out(mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)))

        return Stream()


def source(hook_in: Any, hook_out: Any = None) -> TextActivations:
    return TextActivations(tiny_lm(), pack(tiny_lm(), TEXTS, 16), hook_in, hook_out, block_sequences=8)


@torch.no_grad()
def ce_with(points: tuple[str, ...], change: Any) -> float:
    """CE with plain PyTorch hooks; `change(i, activation)` for what is not special."""
    model, ids = tiny_lm().module, source(LAYERS).sequences.long()
    special = torch.isin(ids, torch.tensor([0, 1]))

    def hook(i: int) -> Any:
        def run(_module: object, _args: object, output: Any) -> Any:
            first = output if isinstance(output, Tensor) else output[0]
            new = torch.where(special[..., None], first, change(i, first))
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return run

    handles = [model.get_submodule(point).register_forward_hook(hook(i)) for i, point in enumerate(points)]
    logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return float(functional.cross_entropy(logits[:, :-1][~special[:, 1:]], ids[:, 1:][~special[:, 1:]]))


def test_layers_of_a_crosscoder_get_their_parts() -> None:
    both = source(list(LAYERS))
    same = ce_recovered(Fake(32, lambda x: x), both)
    assert same["ce_recovered"] == pytest.approx(1, abs=1e-5)
    assert same["hook_in"] == LAYERS
    nothing = ce_recovered(Fake(32, torch.zeros_like), both)
    assert nothing["ce_recovered"] == pytest.approx(0, abs=1e-5)
    factors = torch.tensor([2.0, 0.5]).repeat_interleave(16)
    clean = {}
    ce_with(LAYERS, lambda i, a: clean.setdefault(i, a.clone()))
    expected = ce_with(LAYERS, lambda i, a: clean[i] * (2.0, 0.5)[i])
    found = ce_recovered(Fake(32, lambda x: x * factors), both, forward_sequences=3)
    assert found["ce_sae"] == pytest.approx(expected, rel=1e-4)
    assert found["ce_sae"] != pytest.approx(ce_with(LAYERS, lambda i, a: a * (2.0, 0.5)[i]), rel=1e-3)


def test_a_cross_layer_transcoder_reads_what_it_wrote_below() -> None:
    mlps = source([f"{point}:in" for point in MLPS], list(MLPS))
    assert ce_recovered(Mlps(), mlps)["ce_recovered"] == pytest.approx(1, abs=1e-4)
    found = ce_recovered(Mlps(lambda y: 0.3 * y), mlps, forward_sequences=3)
    assert found["ce_sae"] == pytest.approx(ce_with(MLPS, lambda i, a: 0.3 * a), rel=1e-4)


def test_mean_ablation_of_several_points() -> None:
    mean = torch.arange(32.0) / 8
    found = ce_recovered(Fake(32, lambda x: x), source(list(LAYERS)), ablation="mean", mean=mean)
    expected = ce_with(LAYERS, lambda i, a: mean[16 * i : 16 * i + 16].expand_as(a))
    assert found["ce_ablated"] == pytest.approx(expected, rel=1e-5)


def test_layers_in_the_wrong_order() -> None:
    with pytest.raises(AdapterError, match=r"'model.layers.0.mlp:in' is passed before 'model.layers.1.mlp:in'"):
        ce_recovered(Mlps(), source([f"{p}:in" for p in MLPS[::-1]], list(MLPS[::-1])))
    with pytest.raises(AdapterError, match=r"'model.layers.0.mlp' is passed before 'model.layers.1:in', expected"):
        ce_recovered(Mlps(), source(["model.layers.1:in", "model.layers.1.mlp:in", "model.layers.2:in"], list(MLPS)))


def test_the_report_names_all_points() -> None:
    found = evaluate(Fake(32, lambda x: x), source(list(LAYERS)), max_tokens=50, bootstrap=0)
    json.dumps(found, allow_nan=False)
    assert ", ".join(LAYERS) in table(found)
