"""docs/training.md says what the code reads: every key, with its type, default and meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sae_kernels.architectures.builtin import sae_kernels_architectures
from sae_kernels.train.keys import keys
from sae_kernels.train.open_tables import ActivationsTable, CoderTable
from sae_kernels.train.parsing import TABLES

DOCS = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """From a heading to the next of its level."""
    return DOCS.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("table", TABLES)
def test_every_key_of_a_table(table: str) -> None:
    rows = section(f"`[{table}]`").splitlines()
    for key in keys(TABLES[table]).values():
        assert key.row() in rows, f"docs/training.md, [{table}], needs this row:\n{key.row()}"


@pytest.mark.parametrize("adapter", ["huggingface", "tensors", "torch_module"])
def test_every_key_of_a_built_in_adapter(adapter: str) -> None:
    text = section("`[activations]`").split(f"\n`{adapter}`: ", 1)[1].split("\n\n`")[0]
    for name in ActivationsTable(adapter).accepted()[0]:
        assert f"`{name}`" in text, f"docs/training.md does not say what {adapter}'s key {name} means"


@pytest.mark.parametrize("architecture", [each.name for each in sae_kernels_architectures()])
def test_every_key_of_a_built_in_architecture(architecture: str) -> None:
    for name in CoderTable(architecture).accepted()[0]:
        assert f"`{name}`" in section("`[coder]`"), f"docs/training.md does not say what {name} means"


def test_what_a_resumed_run_may_change() -> None:
    sentence = DOCS.split("but for: ", 1)[1].split(".", 1)[0]
    assert re.findall(r"`(\w+)`", sentence) == [
        name for table in TABLES.values() for name, key in keys(table).items() if key.may_change
    ]
