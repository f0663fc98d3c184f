"""Configurations: what is read, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sae_kernels.architectures import CoderConfig
from sae_kernels.errors import ConfigError
from sae_kernels.plugins import plugins
from sae_kernels.specs import Adapter
from sae_kernels.train import Config, load_config

TOML = """
[activations]
adapter = "tensors"
path = "acts"
[coder]
architecture = "topk"
d_sae = 64
k = 4
[training]
tokens = 1_000
batch_size = 300
betas = [0.8, 0.9]
[output]
dir = "run"
"""

Tables = dict[str, dict[str, Any]]


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = load_config(path)
    assert config.activations.options == {"path": "acts"}
    assert config.coder.fields == {"d_sae": 64, "k": 4}
    assert config.training.total_steps == 4  # rounded up to whole batches
    assert config.training.betas == (0.8, 0.9)
    assert config.training.peak_lr(16384) == 2e-4
    assert config.output.dir == Path("run")


def test_a_dictionary_survives_json(tables: Tables) -> None:
    config = Config.from_dict(tables)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert config.differences(again) == []


@pytest.mark.parametrize(
    ("table", "name", "value", "words"),
    [
        ("training", "batchsize", 3, ["[training] batchsize: unknown key", "'batch_size'"]),
        ("output", "dri", "x", ["[output] dri: unknown key", "'dir'"]),
        ("coder", "kk", 3, ["[coder] kk: unknown key", "'k'"]),
        ("coder", "architecture", "topkk", ["[coder] unknown architecture 'topkk'", "'topk'"]),
        ("activations", "adapter", "tensor", ["[activations] unknown adapter 'tensor'", "'tensors'"]),
        ("activations", "block_row", 3, ["[activations] block_row: unknown key", "'block_rows'"]),
        ("activations", "block_rows", "3", ["[activations] block_rows is '3' (a string)", "an integer"]),
        ("activations", "split", "trian", ["[activations] split is 'trian'", '"train"']),
        ("activations", "path", [1], ["[activations] path is [1]", "a list of strings"]),
        ("coder", "k", 65, ["[coder] k = 65", "d_sae = 32"]),
        ("coder", "k", 0, ["[coder] k = 0", "positive"]),
        ("coder", "k", 1.5, ["[coder] k is 1.5 (a number)", "an integer"]),
        ("coder", "k", True, ["[coder] k is True (true or false)", "an integer"]),
        ("coder", "seed", -1, ["[coder] seed = -1"]),
        ("training", "lr", "fast", ["[training] lr is 'fast' (a string)", "a number"]),
        ("training", "lr", -1.0, ["[training] lr = -1.0", "> 0"]),
        ("training", "lr", float("nan"), ["[training] lr = nan"]),
        ("training", "tokens", 100, ["[training] tokens or steps: found both"]),
        ("training", "steps", 0, ["[training] steps = 0", "at least 1"]),
        ("training", "batch_size", 0, ["[training] batch_size = 0"]),
        ("training", "betas", [0.9], ["[training] betas is [0.9]", "a list of 2 numbers"]),
        ("training", "betas", [0.9, 1.0], ["[training] betas = (0.9, 1.0)"]),
        ("training", "lr_decay_fraction", 1.5, ["[training] lr_decay_fraction = 1.5"]),
        ("training", "autocast", "float16", ["[training] autocast is 'float16'", '"bfloat16"']),
        ("training", "device", "gpu", ["[training] device = 'gpu'"]),
        ("training", "tensorboard", "yes", ["[training] tensorboard is 'yes'", "true or false"]),
        ("output", "dir", "", ["[output] dir is empty"]),
    ],
)
def test_what_cannot_be_meant(tables: Tables, table: str, name: str, value: Any, words: list[str]) -> None:
    tables[table][name] = value
    with pytest.raises(ConfigError) as raised:
        Config.from_dict(tables, "run.toml")
    for word in ["run.toml: ", *words]:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("table", "name", "words"),
    [
        ("activations", "adapter", "[activations] adapter: missing"),
        ("activations", "path", "[activations] path: missing"),
        ("coder", "k", "[coder] k: missing"),
        ("training", "steps", "found neither"),
        ("output", "dir", "[output] dir: missing"),
    ],
)
def test_what_is_missing(tables: Tables, table: str, name: str, words: str) -> None:
    del tables[table][name]
    with pytest.raises(ConfigError) as raised:
        Config.from_dict(tables)
    assert words in str(raised.value)


def test_a_missing_hook_point_is_found_without_a_model(tables: Tables) -> None:
    tables["activations"] = {"adapter": "huggingface", "model": "nowhere/nothing", "text": "x.txt"}
    with pytest.raises(ConfigError, match=r"\[activations\] hook_in: missing"):
        Config.from_dict(tables)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"trianing": {}}, "unknown table 'trianing', did you mean 'training'"),
        ({"lr": 0.1}, r"unknown key 'lr', it belongs into \[training\]"),
        ({"training": 3}, r"training is 3 \(an integer\), expected a table"),
    ],
)
def test_foreign_tables(tables: Tables, extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.from_dict({**tables, **extra})


@pytest.mark.parametrize(
    ("content", "words"), [(b"[training", "run.toml: "), (b"\xff", "run.toml: "), (None, "No such")]
)
def test_no_toml(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_differences_know_defaults_and_what_may_change(tables: Tables) -> None:
    before = Config.from_dict(tables)
    tables["activations"]["seed"] = 0  # the adapter's default, now said
    tables["coder"]["d_in"] = 8  # the source's, now said
    tables["training"].update(steps=100, log_every=7, checkpoint_every=3, keep_checkpoints=9)
    tables["output"]["dir"] = "elsewhere"
    assert before.differences(Config.from_dict(tables)) == []
    tables["activations"]["seed"] = 1
    tables["coder"]["k"] = 4
    tables["training"]["lr"] = 0.5
    assert before.differences(Config.from_dict(tables)) == [
        "[activations] seed: 0, now 1",
        "[coder] k: 3, now 4",
        "[training] lr: 0.01, now 0.5",
    ]


def test_an_adapter_that_takes_anything(tables: Tables) -> None:
    class Plugin:
        @staticmethod
        def sae_kernels_adapters():
            return [Adapter("anything", "", lambda **keys: keys)]

    from sae_kernels import hookimpl

    Plugin.sae_kernels_adapters = staticmethod(hookimpl(Plugin.sae_kernels_adapters))
    plugins().register(Plugin, "takes-anything")
    try:
        tables["activations"] = {"adapter": "anything", "colour": "green"}
        assert Config.from_dict(tables).activations.open(size=3) == {"colour": "green", "size": 3}
    finally:
        plugins().unregister("takes-anything")


def test_a_check_of_d_in_waits_for_the_source(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where d_in is unknown, only complaints that no d_in could still are raised."""
    from sae_kernels.architectures.topk import TopKCoder, TopKConfig

    @dataclasses.dataclass(frozen=True)
    class Picky(TopKConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.d_in % 24:
                raise ConfigError(f"d_in = {self.d_in}, expected a multiple of 24")

    monkeypatch.setattr(TopKCoder, "Config", Picky)
    assert issubclass(Picky, CoderConfig)
    Config.from_dict(tables)
    tables["coder"]["k"] = 99
    with pytest.raises(ConfigError, match="k = 99"):
        Config.from_dict(tables)
