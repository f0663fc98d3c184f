"""Sources of several hook points, of one model or of several: features side by side, in the order asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_lm import TEXTS, tiny_lm

from sae_kernels.adapters import (
    CrossModelActivations,
    HuggingFaceModel,
    LanguageSource,
    ModuleActivations,
    TextActivations,
    pack,
)
from sae_kernels.adapters.huggingface_source import open_source
from sae_kernels.errors import AdapterError, ArgumentError, UnknownNameError

A, B, MLP = "model.layers.0", "model.layers.2", "model.layers.1.mlp"


@pytest.fixture
def other() -> HuggingFaceModel:
    """The tiny model with other weights."""
    model = tiny_lm()
    module = type(model.module)(model.module.config)
    with torch.no_grad():
        for mine, theirs in zip(module.parameters(), model.module.parameters(), strict=True):
            mine.copy_(theirs * 0.5)
    return HuggingFaceModel(module, model.tokenizer)


@pytest.mark.parametrize("shuffle", [False, True])
def test_features_stand_side_by_side(shuffle: bool) -> None:
    sequences = pack(tiny_lm(), TEXTS, 16)
    options: dict[str, Any] = {"block_sequences": 6, "forward_sequences": 4, "shuffle": shuffle}
    both = TextActivations(tiny_lm(), sequences, [B, f"{MLP}:in"], [A, MLP, B], **options)
    assert isinstance(both, LanguageSource)
    assert (both.d_in, both.d_out) == (32, 48)
    assert (both.hook_in, both.hook_out) == ((B, f"{MLP}:in"), (A, MLP, B))
    block = both.block(1)
    for points, found in ((both.hook_in, block.input), (both.hook_out, block.target)):
        alone = [TextActivations(tiny_lm(), sequences, point, **options).block(1) for point in points]
        torch.testing.assert_close(found, torch.cat([one.input for one in alone], dim=1))
        assert all(torch.equal(one.ids, block.ids) for one in alone)  # pyright: ignore[reportArgumentType]


def test_without_hook_out_the_target_is_the_input() -> None:
    source = TextActivations(tiny_lm(), pack(tiny_lm(), TEXTS, 16), [A, B])
    block = source.block(0)
    assert block.target is block.input
    assert source.hook_out == source.hook_in == (A, B)


def test_several_models(other: HuggingFaceModel) -> None:
    sequences = pack(tiny_lm(), TEXTS, 16)
    source = CrossModelActivations([tiny_lm(), other], sequences, [A, B], shuffle=True)
    assert not isinstance(source, LanguageSource)
    assert (source.d_in, source.d_out) == (64, 64)
    block = source.block(0)
    assert block.target is block.input
    alone = [
        TextActivations(model, sequences, point, shuffle=True).block(0).input
        for model in (tiny_lm(), other)
        for point in (A, B)
    ]
    torch.testing.assert_close(block.input, torch.cat(alone, dim=1))
    assert not torch.equal(alone[0], alone[2])
    with pytest.raises(ArgumentError, match="1 models, expected at least two"):
        CrossModelActivations([other], sequences, A)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([], r"hook_in = \[\], expected a hook point or a list"),
        ([A, f"{A}:out"], "'model.layers.0:out' stands there twice|model.layers.0:out"),
        ([A, 3], "hook point 3: expected"),
        (3, "hook_in = 3, expected a hook point or a list"),
    ],
)
def test_senseless_lists(points: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        TextActivations(tiny_lm(), pack(tiny_lm(), TEXTS, 16), points)
    with pytest.raises(ArgumentError, match=words):
        ModuleActivations(torch.nn.Linear(2, 2), [torch.ones(1, 2)], points)


def test_a_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    source = ModuleActivations(module, [torch.randn(5, 3)], ["2", "0:in"], ["1", "0"])
    assert (source.d_in, source.d_out) == (5, 8)
    block = source.block(0)
    with torch.no_grad():
        first = module[0](block.input[:, 2:])
        torch.testing.assert_close(block.target, torch.cat([first.relu(), first], dim=1))
        torch.testing.assert_close(block.input[:, :2], module(block.input[:, 2:]))


def test_a_module_whose_points_see_other_numbers_of_tokens() -> None:
    class Halves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)[::2])

    with pytest.raises(AdapterError, match="4 at 'a', 2 at 'b'; expected as many"):
        ModuleActivations(Halves(), [torch.ones(4, 3)], ["a", "b"])


# The configuration table


@pytest.fixture
def options(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0][1])
    return {"model": str(model_folder), "text": str(text), "hook_in": [A, B], "context_length": 16, "split": "all"}


def test_open_source(options: dict[str, Any]) -> None:
    source = open_source(**options, hook_out=MLP)
    assert isinstance(source, TextActivations)
    assert (source.d_in, source.d_out) == (32, 16)


def test_open_two_models(options: dict[str, Any]) -> None:
    one = open_source(**options)
    two = open_source(**{**options, "model": [options["model"]] * 2, "revision": ["main", "main"]})
    assert isinstance(two, CrossModelActivations)
    torch.testing.assert_close(two.block(0).input, one.block(0).input.repeat(1, 2))


def test_models_of_other_tokenizers(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(options["model"], folder)
    file = folder / "tokenizer.json"
    text = file.read_text()
    assert '"a":' in text
    file.write_text(text.replace('"a":', '"swapped":').replace('"b":', '"a":').replace('"swapped":', '"b":'))
    words = r"other'?: 2 tokens have another id than in the first model, 'a' say .*expected one tokenizer"
    with pytest.raises(AdapterError, match=words):
        open_source(**{**options, "model": [options["model"], str(folder)]})


def test_senseless_options_fail_before_a_model_is_loaded(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(HuggingFaceModel, "load", never)
    with pytest.raises(UnknownNameError, match=r"did you mean .*'model.layers.1.mlp'"):
        open_source(**{**options, "hook_in": [A, "model.layers.1.mpl"]})
    with pytest.raises(UnknownNameError, match=r"unknown module of LlamaForCausalLM 'model\.layers\.7'"):
        open_source(**options, hook_out="model.layers.7")
    with pytest.raises(ArgumentError, match="revision has 1 entries, model has 2"):
        open_source(**{**options, "model": [options["model"]] * 2}, revision=["main"])
    with pytest.raises(ArgumentError, match="side 'sideways'"):
        open_source(**{**options, "hook_in": f"{A}:sideways"})
