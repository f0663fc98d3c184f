"""Streams of text: groups, their order, what is skipped, and activations of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_lm import LAYER, tiny_lm

from sae_kernels.adapters import TextActivations, pack
from sae_kernels.adapters.datasets import dataset_texts
from sae_kernels.adapters.huggingface_source import open_source
from sae_kernels.adapters.streaming import StreamActivations, Text, TextStream, leading, shuffled, skipped
from sae_kernels.adapters.texts import read_texts
from sae_kernels.errors import AdapterError, ArgumentError, UnknownNameError

TEXTS = [(str(i), chr(97 + i % 26) * (7 + 11 * (i % 5))) for i in range(60)]


def groups(stream: TextStream, n: int) -> list[list[Text]]:
    return [stream.group(i) for i in range(n)]


def test_groups_hold_every_text_once_in_order() -> None:
    stream = TextStream(lambda: TEXTS, 200, epochs=1)
    n = stream.count()
    found = groups(stream, n)
    assert list(itertools.chain(*found)) == TEXTS
    sizes = [sum(len(text) for _, text in group) for group in found]
    assert all(size >= 100 for size in sizes)
    assert all(size < 200 + 51 for size in sizes[:-1])
    with pytest.raises(AdapterError, match=f"block {n}: the texts of 1 epochs fill {n} blocks"):
        stream.group(n)


@pytest.mark.parametrize("buffer", [0, 10])
def test_a_group_is_the_same_whenever_it_is_asked_for(buffer: int) -> None:
    stream = TextStream(lambda: TEXTS, 200, buffer=buffer, seed=3)
    once = groups(stream, 15)
    for index in (4, 2, 3, 14, 0):
        assert stream.group(index) == once[index]
        assert TextStream(lambda: TEXTS, 200, buffer=buffer, seed=3).group(index) == once[index]
    other = groups(TextStream(lambda: TEXTS, 200, buffer=buffer, seed=4), 15)
    assert (other == once) == (buffer == 0)


def test_epochs_go_on_and_are_mixed_anew() -> None:
    per_epoch = TextStream(lambda: TEXTS, 200, buffer=10, epochs=1).count()
    found = groups(TextStream(lambda: TEXTS, 200, buffer=10), 2 * per_epoch + 1)
    first, second = itertools.chain(*found[:per_epoch]), list(itertools.chain(*found[per_epoch:]))
    first = list(first)
    assert sorted(first) == sorted(TEXTS)
    assert second[: len(TEXTS)] != first


def test_shuffling_keeps_every_text_and_needs_only_its_buffer() -> None:
    assert sorted(shuffled(iter(TEXTS), 8, "a")) == sorted(TEXTS)
    assert list(shuffled(iter(TEXTS), 8, "a")) != TEXTS
    endless = shuffled(((str(i), "x") for i in itertools.count()), 8, "a")
    assert max(int(name) for name, _ in itertools.islice(endless, 50)) < 58


def test_what_is_held_out_is_what_is_skipped() -> None:
    for characters in (0, 1, 7, 8, 500):
        held = list(leading(TEXTS, characters))
        assert held + list(skipped(TEXTS, characters)) == TEXTS
        assert sum(len(text) for _, text in held) >= characters


def test_it_reads_no_further_than_it_must() -> None:
    read = []

    def endless() -> Iterator[Text]:
        for i in itertools.count():
            read.append(i)
            yield str(i), "x" * 10

    stream = TextStream(endless, 100)
    stream.group(2)
    assert len(read) <= 41


def test_nothing_to_read() -> None:
    with pytest.raises(AdapterError, match="no texts to read after the first 5 characters"):
        TextStream(lambda: [("a", "abc")], 10, skip=5).group(0)


def test_activations_are_those_of_the_same_texts() -> None:
    model = tiny_lm()
    texts = [(str(i), "def f(x):\n    return x + 1\n" * 3) for i in range(20)]

    def read(sequences: torch.Tensor, seed: int) -> TextActivations:
        return TextActivations(model, sequences, LAYER, block_sequences=len(sequences), shuffle=True, seed=seed)

    stream = StreamActivations(TextStream(lambda: texts, 400, epochs=1), lambda part: pack(model, part, 16), read)
    assert (stream.d_in, stream.d_out, stream.n_blocks) == (16, 16, 4)
    batch = stream.block(1)
    group = TextStream(lambda: texts, 400, epochs=1).group(1)
    expected = TextActivations(model, pack(model, group, 16), LAYER, block_sequences=1000).block(0)
    order = (batch.sequence * 16 + batch.position).argsort()
    torch.testing.assert_close(batch.input[order], expected.input, rtol=1e-4, atol=1e-5)
    assert not torch.equal(order, torch.arange(len(order))), "rows of a block are mixed"
    again = stream.block(1)
    assert torch.equal(again.input, batch.input)


def test_plain_text_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"line {i} is {'long ' * (i % 7)}\n" for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_texts(tmp_path / "a.txt", piece=100))
    assert "".join(piece for _, piece in pieces) == text
    assert all(piece.endswith("\n") and len(piece) < 200 for _, piece in pieces)
    assert list(read_texts(tmp_path / "a.txt")) == [(str(tmp_path / "a.txt"), text)]
    (tmp_path / "b.txt").write_text("x" * 1000)
    assert [len(piece) for _, piece in read_texts(tmp_path / "b.txt", piece=100)] == [200] * 5
    (tmp_path / "c.txt").write_bytes(b"ab\xff")
    with pytest.raises(AdapterError, match="not UTF-8"):
        list(read_texts(tmp_path / "c.txt", piece=100))


def test_a_dataset(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    lines = [{"body": f"text {i}", "n": i} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = list(dataset_texts(str(tmp_path), column="body"))
    assert [text for _, text in found] == [line["body"] for line in lines]
    with pytest.raises(UnknownNameError, match=r"unknown column .*'bod'.*did you mean 'body'"):
        list(dataset_texts(str(tmp_path), column="bod"))
    with pytest.raises(AdapterError, match=r"row 0: column 'n' is a int, expected text"):
        list(dataset_texts(str(tmp_path), column="n"))
    with pytest.raises(AdapterError, match=r"can't be opened: .*[Ss]plit"):
        list(dataset_texts(str(tmp_path), column="body", split="nowhere"))
    with pytest.raises(AdapterError, match="can't be opened"):
        list(dataset_texts(str(tmp_path / "nothing"), local_files_only=True))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    model = tiny_lm()
    model.module.save_pretrained(tmp_path / "lm")
    model.tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def lines(path: Path, n: int) -> Path:
    texts = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, texts)) + "\n")
    return path


def opened(model_dir: Path, **keys: object) -> object:
    options = {"context_length": 16, "block_sequences": 4, "heldout_characters": 300, "shuffle_texts": 5}
    return open_source(model=model_dir, hook_in=LAYER, **{**options, **keys})


@pytest.mark.parametrize("kind", ["text", "dataset"])
def test_the_adapter_streams(model_dir: Path, tmp_path: Path, kind: str) -> None:
    if kind == "dataset":
        pytest.importorskip("datasets")
    (tmp_path / "texts").mkdir()
    file = lines(tmp_path / "texts" / "train.jsonl", 60)
    keys = {"text": str(file), "stream": True} if kind == "text" else {"dataset": str(file.parent)}
    train, heldout = opened(model_dir, **keys), opened(model_dir, **keys, split="heldout")
    assert train.n_blocks is None
    assert (train.d_in, heldout.d_in) == (16, 16)
    held = tiny_lm().detokenize(heldout.sequences.flatten())
    assert "f0(x)" in held
    assert "f11(x)" not in held
    seen = "".join(tiny_lm().detokenize(train.block(i).ids.sort().values) for i in range(2))
    assert 3 * 64 > len(train.block(0)) > 32, "about block_sequences · context_length tokens"
    assert seen
    assert torch.equal(opened(model_dir, **keys).block(2).input, train.block(2).input)
    assert not torch.equal(train.block(2).input[:9], train.block(3).input[:9])
    everything = opened(model_dir, **keys, split="all")
    tokens = sum(len(everything.block(i)) for i in range(everything.n_blocks))
    assert tokens > 0.8 * sum(len(json.loads(line)["text"]) for line in file.read_text().splitlines())


def test_keys_that_do_not_go_together(model_dir: Path, tmp_path: Path) -> None:
    file = str(lines(tmp_path / "a.jsonl", 3))
    for keys, message in [
        ({}, "text or dataset: found neither"),
        ({"text": file, "dataset": "x"}, "text or dataset: found both"),
        ({"text": file, "stream": True, "max_tokens": 5}, "max_tokens = 5, expected none for a stream"),
        ({"text": "python-stdlib", "stream": True}, "expected false for text = 'python-stdlib'"),
        ({"text": file, "heldout_characters": 0}, "heldout_characters = 0"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            opened(Path("nowhere"), **keys)
    with pytest.raises(AdapterError, match="no texts to read after the first 300 characters"):
        opened(model_dir, text=file, stream=True)
