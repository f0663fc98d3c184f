"""Timing: who runs when."""

from __future__ import annotations

import pytest

from sae_kernels.measure import interleaved


@pytest.mark.parametrize(("settle", "each"), [(False, "a b"), (True, "a a b b")])
def test_who_runs_when(settle: bool, each: str) -> None:
    """One after the other in every round; with `settle` each of them twice, the second time timed."""
    calls: list[str] = []
    found = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3, warmup=2, settle=settle)
    assert calls == ["a", "b"] * 2 + each.split() * 3
    assert list(found) == ["a", "b"]
    assert all(0 <= ms < 1000 for ms in found.values())
