from __future__ import annotations

import dataclasses

import pytest
import torch
from support.tiny_lm import TEXTS, tiny_lm, tiny_source

import sae_kernels as sk
from sae_kernels.adapters import TextActivations
from sae_kernels.errors import AdapterError, ArgumentError, IndexRangeError
from sae_kernels.features import Context, FeatureTable, contexts, format_contexts, top_activations


@pytest.fixture
def sae() -> sk.SparseCoder:
    return sk.create("topk", d_in=16, d_sae=64, k=4, seed=0)


def table_of(*places: tuple[int, int]) -> FeatureTable:
    """One latent, strongest at (sequence, position) of the source, the best first."""
    n = len(places)
    sequence, position = torch.tensor(places).T
    values = torch.arange(n, 0, -1).float()[None]
    tokens = torch.arange(n)[None]
    return FeatureTable(
        values, tokens, torch.tensor([n]), values.double().sum(1), 100, tokens, sequence[None], position[None]
    )


def test_windows_of_text(sae: sk.SparseCoder) -> None:
    source = tiny_source()
    table = top_activations(sae, source, n=4)
    text = "<eos>".join(text for _, text in TEXTS)
    for latent in range(64):
        found = contexts(table, source, latent, width=3)
        values = [context.value for context in found]
        assert values == sorted(values, reverse=True)
        assert values[:1] == table.values[latent, :1].tolist() or not int(table.firings[latent])
        for context in found:
            assert context.before + context.peak + context.after in text
            token = source.sequences[context.sequence, context.position : context.position + 1]
            assert context.peak == source.model.detokenize(token)
            assert len(context.before) <= 3
            assert len(context.after) <= 3


def test_a_text_ends_at_a_special_token() -> None:
    model = tiny_lm()
    ids = torch.cat([torch.tensor([0]), model.tokenize("abc"), torch.tensor([1]), model.tokenize("defgh")])
    source = TextActivations(model, ids[None], "model")
    assert contexts(table_of((0, 5)), source, 0) == [Context(1.0, "", "d", "efgh", 0, 5)]
    assert contexts(table_of((0, 3)), source, 0) == [Context(1.0, "ab", "c", "", 0, 3)]
    assert contexts(table_of((0, 6)), source, 0, width=1) == [Context(1.0, "d", "e", "f", 0, 6)]


def test_one_passage_is_shown_once() -> None:
    source = tiny_source()
    table = table_of((0, 5), (0, 6), (1, 5), (0, 12))
    assert [(c.sequence, c.position) for c in contexts(table, source, 0, width=2)] == [
        (0, 5),
        (1, 5),
        (0, 12),
    ]
    assert len(contexts(table, source, 0, width=2, n=2)) == 2


def test_characters_of_several_tokens() -> None:
    model = tiny_lm()
    source = TextActivations(model, model.tokenize("a→b")[None], "model")
    (context,) = contexts(table_of((0, 2)), source, 0)
    assert context.before.startswith("a")
    assert context.after.endswith("b")


def test_a_tokenizer_that_drops_leading_spaces() -> None:
    class Model:
        special_ids = frozenset[int]()

        def detokenize(self, ids: torch.Tensor) -> str:
            return "".join(" " + "xyz"[i] for i in ids.tolist()).lstrip()

    source = dataclasses.make_dataclass("Source", ["model", "sequences"])(Model(), torch.tensor([[0, 1, 2]]))
    assert contexts(table_of((0, 1)), source, 0) == [Context(1.0, "x", " y", " z", 0, 1)]


def test_what_does_not_fit() -> None:
    source = tiny_source()
    with pytest.raises(IndexRangeError, match="latent = 1"):
        contexts(table_of((0, 1)), source, 1)
    with pytest.raises(IndexRangeError, match="the source the table was made from"):
        contexts(table_of((10_000, 1)), source, 0)
    with pytest.raises(ArgumentError, match="width = 0"):
        contexts(table_of((0, 1)), source, 0, width=0)
    with pytest.raises(AdapterError, match="read no text"):
        contexts(dataclasses.replace(table_of((0, 1)), sequence=None), source, 0)


def test_formatted_for_the_terminal() -> None:
    found = [
        Context(12.5, "def f(", "self", "):\n\treturn 1", 0, 0),
        Context(
            3.25,
            "a very long stretch of text that cannot all be shown ",
            "x",
            " and as much that comes after it" * 2,
            0,
            0,
        ),
    ]
    lines = format_contexts(found, 60).splitlines()
    assert "⏎⇥return 1" in lines[0]
    assert "\n" not in lines[0]
    assert lines[0].startswith("   12.50")
    assert "«self»" in lines[0]
    assert lines[0].index("«") == lines[1].index("«")
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].endswith("…")
    assert format_contexts([]) == ""
    assert "«⏎   »" in format_contexts([Context(1.0, "", "\n" + " " * 36, "", 0, 0)])
    assert "·" in format_contexts([Context(1.0, "\x1b[31m", "a", "", 0, 0)]), "no escape sequence reaches the terminal"
