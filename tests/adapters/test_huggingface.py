from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_kernels.adapters import HuggingFaceModel, LanguageSource, TextActivations, pack
from sae_kernels.adapters.huggingface_source import open_source
from sae_kernels.errors import AdapterError, ArgumentError, UnknownNameError

MLP = "model.layers.1.mlp"
TEXTS = [("one", "def f(x):\n    return x + 1\n" * 20), ("two", "The licence is hereby granted. " * 30)]
DEMO_MODEL = Path(__file__).parents[2] / "sae_kernels" / "demo" / "model"


@pytest.fixture(scope="module")
def ids(lm: HuggingFaceModel) -> torch.Tensor:
    return lm.tokenize("hello, world").view(2, 6)


@pytest.fixture
def sequences(lm: HuggingFaceModel) -> torch.Tensor:
    return pack(lm, TEXTS, 16)


# The model


def test_tokenizer_round_trip(lm: HuggingFaceModel) -> None:
    text = "naïve “text”\n\tand 数"
    ids = lm.tokenize(text)
    assert ids.dtype == torch.int64
    assert not set(ids.tolist()) & lm.special_ids
    assert lm.detokenize(ids) == text
    assert lm.tokenize("").shape == (0,)


def test_what_it_knows_of_itself(lm: HuggingFaceModel) -> None:
    assert (lm.bos_id, lm.eos_id, lm.max_context) == (0, 1, 64)
    assert lm.special_ids == {0, 1}
    assert lm.d_of(MLP) == 16
    assert lm.d_of("model.layers.1.mlp.down_proj:in") == 32
    assert not lm.module.training


def test_logits_and_activations(lm: HuggingFaceModel, ids: torch.Tensor) -> None:
    logits = lm.logits(ids)
    assert logits.shape == (2, 6, 258)
    torch.testing.assert_close(lm.logits(ids[0]), logits[0])
    seen = lm.activations(ids, [MLP, f"{MLP}:in", "lm_head:in"])
    assert torch.equal(lm.module.model.layers[1].mlp(seen[f"{MLP}:in"]), seen[MLP])
    assert torch.equal(lm.module.lm_head(seen["lm_head:in"]), logits)
    assert lm.activations(ids[0], [MLP])[MLP].shape == (6, 16)
    assert lm.activations(ids, []) == {}
    assert not seen[MLP].requires_grad


@pytest.mark.parametrize("point", [MLP, f"{MLP}:in", "model.layers.1", "model.layers.1.self_attn", "model", ":out"])
def test_interventions(lm: HuggingFaceModel, ids: torch.Tensor, point: str) -> None:
    before = lm.logits(ids)
    with lm.intervene({point: torch.clone}):
        assert torch.equal(lm.logits(ids), before)
    with lm.intervene({point: torch.zeros_like}):
        assert not torch.equal(lm.logits(ids), before)
    assert torch.equal(lm.logits(ids), before)


def test_activations_see_an_intervention_below(lm: HuggingFaceModel, ids: torch.Tensor) -> None:
    with lm.intervene({MLP: torch.zeros_like}):
        assert lm.activations(ids, [MLP])[MLP].abs().sum() == 0


def test_generation_is_seeded_and_leaves_the_global_state(lm: HuggingFaceModel) -> None:
    state = torch.get_rng_state()
    text = lm.generate("import ", 20, seed=1)
    assert text == lm.generate("import ", 20, seed=1)
    assert text != lm.generate("import ", 20, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_generation_agrees_with_the_logits(lm: HuggingFaceModel) -> None:
    ids = torch.cat([torch.tensor([0]), lm.tokenize("if ")])
    for _ in range(10):
        best = lm.logits(ids)[-1].argmax()
        if best == lm.eos_id:
            break
        ids = torch.cat([ids, best[None]])
    assert lm.generate("if ", 10, temperature=0) == lm.detokenize(ids[4:])
    assert lm.generate("if ", 10, temperature=1e-30) == lm.detokenize(ids[4:])


def test_steering_changes_what_is_generated(lm: HuggingFaceModel) -> None:
    direction = 30 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    with lm.intervene({"model.layers.0": lambda a: a + direction}):
        steered = lm.generate("import ", 10, temperature=0)
    assert steered != lm.generate("import ", 10, temperature=0)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.tensor([[5, 258]]), "token ids from 5 to 258, expected 0 to 257"),
        (torch.tensor([[-1]]), "token ids from -1"),
        (torch.ones(1, 65, dtype=torch.int64), "65 tokens in a sequence, the model takes at most 64"),
        (torch.ones(1, 3), r"ids \(1, 3\) float32 cpu"),
        (torch.ones(1, 0, dtype=torch.int64), "not empty"),
        (torch.ones(1, 1, 1, dtype=torch.int64), r"ids \(1, 1, 1\)"),
    ],
)
def test_bad_ids(lm: HuggingFaceModel, ids: torch.Tensor, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        lm.logits(ids)


@pytest.mark.parametrize(("n", "temperature"), [(0, 1.0), (100, 1.0), (5, -1.0), (5, float("nan"))])
def test_bad_generation(lm: HuggingFaceModel, n: int, temperature: float) -> None:
    with pytest.raises(ArgumentError, match=r"n_tokens|temperature|tokens in a sequence"):
        lm.generate("x", n, temperature=temperature)


def test_unknown_hook_point_names_the_nearest(lm: HuggingFaceModel) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*'model.layers.1.mlp'"):
        lm.d_of("model.layers.1.mpl")


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_dtype(model_folder: Path, dtype: str, expected: str) -> None:
    model = HuggingFaceModel.load(model_folder, dtype=dtype)
    assert model.module.dtype == getattr(torch, expected)


def test_models_that_can_not_be_opened(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(AdapterError, match="can't be opened as a causal language model"):
        HuggingFaceModel.load(tmp_path)  # an empty folder
    with pytest.raises(AdapterError, match="can't be opened"):
        HuggingFaceModel.load(tmp_path / "missing", local_files_only=True)
    with pytest.raises(ArgumentError, match="did you mean 'float16'"):
        HuggingFaceModel.load(model_folder, dtype="float61")


def test_truncated_weights(tmp_path: Path, model_folder: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: -100 if file.suffix == ".safetensors" else None])
    with pytest.raises(AdapterError, match="can't be opened"):
        HuggingFaceModel.load(tmp_path)


def test_weights_with_a_tensor_missing(tmp_path: Path, model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[f"{MLP}.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=f"weights without 1 tensors: {MLP}.up_proj.weight"):
        HuggingFaceModel.load(tmp_path)
    weights[f"{MLP}.up_proj.weight"] = torch.ones(2, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="can't be opened"):
        HuggingFaceModel.load(tmp_path)


def test_missing_transformers_says_what_to_install(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AdapterError, match=r"'transformers' is not installed: pip install 'sae-kernels\[train\]'"):
        HuggingFaceModel.load(model_folder)


def test_importing_the_adapters_loads_no_optional_package() -> None:
    code = "import sys, sae_kernels.adapters; assert not {'transformers', 'tokenizers'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Text


def test_packing(lm: HuggingFaceModel) -> None:
    packed = pack(lm, [("a", "abcde"), ("b", "fg")], 5)
    assert packed.shape == (2, 5)
    assert (packed[:, 0] == lm.bos_id).all()
    assert lm.detokenize(packed[:, 1:].flatten()) == "abcde<eos>fg"  # the last <eos> is dropped with the rest


def test_max_tokens_stops_reading(lm: HuggingFaceModel) -> None:
    def texts() -> Any:
        yield "a", "x" * 100
        pytest.fail("read on")

    assert pack(lm, texts(), 11, max_tokens=30).shape == (3, 11)


@pytest.mark.parametrize(
    ("length", "error", "words"),
    [
        (65, ArgumentError, "takes at most 64"),
        (1, ArgumentError, "at least 2"),
        (0, ArgumentError, "integer >= 1"),
    ],
)
def test_bad_context_length(lm: HuggingFaceModel, length: int, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        pack(lm, TEXTS, length)


def test_too_little_text(lm: HuggingFaceModel) -> None:
    with pytest.raises(AdapterError, match="the texts give 4 tokens, expected at least 15"):
        pack(lm, [("a", "abc")], 16)


def test_blocks_hold_the_activations_of_their_tokens(lm: HuggingFaceModel, sequences: torch.Tensor) -> None:
    for shuffle in (False, True):
        source = TextActivations(
            lm, sequences, f"{MLP}:in", MLP, block_sequences=6, forward_sequences=4, shuffle=shuffle
        )
        assert isinstance(source, LanguageSource)
        assert (source.d_in, source.d_out) == (16, 16)
        block = source.block(1)
        assert block.ids is not None
        assert block.sequence is not None
        assert block.position is not None
        assert not set(block.ids.tolist()) & lm.special_ids
        assert torch.equal(block.ids, sequences[block.sequence, block.position].long())
        for row in (0, 17, len(block) - 1):
            seen = lm.activations(sequences[block.sequence[row]], [f"{MLP}:in", MLP])
            torch.testing.assert_close(block.input[row], seen[f"{MLP}:in"][block.position[row]])
            torch.testing.assert_close(block.target[row], seen[MLP][block.position[row]])


def test_an_epoch_has_every_token_that_is_not_special(lm: HuggingFaceModel, sequences: torch.Tensor) -> None:
    source = TextActivations(lm, sequences, MLP, block_sequences=7, shuffle=True, epochs=2)
    n = (source.n_blocks or 0) // 2
    places = [
        [tuple(p) for b in range(n) for p in torch.stack(_places(source, e * n + b), 1).tolist()] for e in range(2)
    ]
    expected = (~torch.isin(sequences, torch.tensor([0, 1]))).nonzero().tolist()
    assert sorted(places[0]) == sorted(places[1]) == sorted(map(tuple, expected))
    assert places[0] != places[1]


def _places(source: TextActivations, index: int) -> list[torch.Tensor]:
    block = source.block(index)
    assert block.sequence is not None
    assert block.position is not None
    return [block.sequence, block.position]


def test_blocks_are_the_same_bits_whenever_asked(lm: HuggingFaceModel, sequences: torch.Tensor) -> None:
    one, two = (TextActivations(lm, sequences, MLP, block_sequences=4, shuffle=True, epochs=None) for _ in range(2))
    for index in (30, 0, 2):
        assert torch.equal(one.block(index).input, two.block(index).input)
    block = one.block(0)
    assert block.target is block.input


def test_hook_point_without_a_row_per_token(lm: HuggingFaceModel, sequences: torch.Tensor) -> None:
    source = TextActivations(lm, sequences, "model.rotary_emb")  # one row per position, for all sequences
    with pytest.raises(AdapterError, match="expected one row per token"):
        source.block(0)


# The configuration table


def test_open_source_on_files(model_folder: Path, tmp_path: Path) -> None:
    for name, text in TEXTS:
        (tmp_path / f"{name}.txt").write_text(text)
    options: dict[str, Any] = {
        "model": str(model_folder),
        "text": str(tmp_path),
        "hook_in": MLP,
        "context_length": 16,
        "heldout": 0.1,
    }
    train, heldout, everything = (open_source(**options, split=s) for s in ("train", "heldout", "all"))
    assert train.n_blocks is None
    assert heldout.n_blocks == 1
    assert torch.equal(torch.cat([train.sequences, heldout.sequences]), everything.sequences)
    assert len(heldout.sequences) == round(len(everything.sequences) * 0.1)


def test_open_source_on_the_standard_library(model_folder: Path) -> None:
    options: dict[str, Any] = {
        "model": model_folder,
        "text": "python-stdlib",
        "hook_in": MLP,
        "context_length": 64,
        "max_tokens": 5000,
    }
    train, heldout = open_source(**options, epochs=3), open_source(**options, split="heldout")
    assert (train.n_blocks, heldout.n_blocks) == (6, 2)
    assert not torch.equal(train.sequences, heldout.sequences)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": 3}, "text = 3, expected a path or a list of paths, or 'python-stdlib'"),
        ({"split": "test"}, "split = 'test', expected one of"),
        ({"block_sequences": 0}, "block_sequences = 0"),
        ({"hook_in": "model:sideways"}, "side 'sideways'"),
    ],
)
def test_bad_options(model_folder: Path, options: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"model": model_folder, "text": __file__, "hook_in": MLP, "context_length": 16}
    with pytest.raises(ArgumentError, match=words):
        open_source(**{**usual, **options})


@pytest.mark.skipif(not (DEMO_MODEL / "config.json").exists(), reason="the embedded model is not in this checkout")
def test_the_embedded_model() -> None:
    model = HuggingFaceModel.load(DEMO_MODEL)
    ids = model.tokenize("def main():\n    return None\n")
    assert model.logits(ids).isfinite().all()
    assert model.generate("import ", 3, temperature=0)
