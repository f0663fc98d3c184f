"""Every test here runs on poisoned memory."""

from __future__ import annotations

import pytest

from sae_kernels.kernels import _cpu
from sae_kernels.kernels._screen import forget, kept


@pytest.fixture(autouse=True)
def _poisoned(poison: None) -> None: ...


@pytest.fixture
def copies_of_few(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of weights whenever calls with a few tokens meet them again, counted from 0."""
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "on")
    monkeypatch.setattr(kept, "counts", dict.fromkeys(kept.counts, 0))
    forget()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every call told."""
    found, tell = [], _cpu.tell

    def listening(name: str, *args: object) -> int:
        answer = tell(name, *args)
        if name.startswith("few"):
            found.append(answer)
        return answer

    monkeypatch.setattr(_cpu, "tell", listening)
    return found
