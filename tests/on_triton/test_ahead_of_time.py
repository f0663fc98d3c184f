"""Every kernel compiles for machines that are not here, and needs of them what the table says."""

from __future__ import annotations

import collections

import pytest
import torch
from support import ahead_table

pytest.importorskip("triton")
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}  # bytes a program may have


def table() -> list[dict[str, str]]:
    return [dict(zip(ahead_table.HEAD, row, strict=True)) for row in ahead_table.read()]


def test_built_in_choices_spill_nowhere_on_nvidia() -> None:
    mine = [row for row in table() if row["choice"] == "built-in" and row["target"] != "gfx942"]
    assert mine
    assert [row for row in mine if row["spills"] != "0"] == []


def test_every_kernel_fits_into_shared_memory() -> None:
    assert [row for row in table() if int(row["shared"]) > SHARED[row["target"]]] == []


def test_the_table_knows_every_target_and_dtype_of_a_kernel() -> None:
    """A kernel that reads floating numbers is there in all three dtypes, on both generations."""
    seen = collections.defaultdict(set)
    for row in table():
        for kind in {"fp32", "bf16", "fp16"} & set(row["types"].split()):
            seen[row["kernel"]].add((row["target"], kind))
    for name in ("spmm", "spmm_t", "spmm_backward", "sddmm", "prefix_decode", "adam_rows", "maxima", "candidates"):
        assert seen[name] >= {(t, kind) for t in ("sm_80", "sm_90") for kind in ("fp32", "bf16", "fp16")}, name


def test_the_table_knows_the_selections_of_many_tokens() -> None:
    """They take another way than those of few."""
    seen = {(row["target"], row["kernel"]) for row in table()}
    assert seen >= {(target, name) for target in ahead_table.PLANS for name in ("fold", "finish", "maxima")}


@pytest.mark.slow
@pytest.mark.parametrize("target", ahead_table.PLANS)
def test_what_is_compiled_now_is_what_the_table_says(target: str) -> None:
    """The built-in choices at one size; `python tests/support/ahead_table.py --check` does all of them."""
    if ahead_table.version() != ahead_table.TABLE.read_text().splitlines()[0]:
        pytest.skip(f"the table was made by {ahead_table.TABLE.read_text().splitlines()[0]}")
    known = {(row[1], *row[3:]) for row in ahead_table.read() if row[0] == target}
    size = "A" if target == "gfx942" else "C"
    found = set(ahead_table.compiled(target, ahead_table.size(size), torch.bfloat16, False))
    missing = [row for row in sorted(found) if (row[1], *row[3:]) not in known]
    assert found
    assert not missing, "run python tests/support/ahead_table.py and look at what changed"
