"""docs/formats.md has every format, with what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_kernels.formats.builtin import sae_kernels_formats
from sae_kernels.specs import Format, resolve

DOCS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("spec", sae_kernels_formats(), ids=lambda spec: spec.name)
def test_a_row_for_each(spec: Format) -> None:
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{spec.name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3] == "yes"
    assert cells[4] == ("yes" if spec.save else "no")
    for target in (spec.matches, spec.load, spec.save):
        assert target is None or callable(resolve(target))


def test_no_more_than_there_are() -> None:
    rows = [line.split("`")[1] for line in DOCS.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(spec.name for spec in sae_kernels_formats())
