"""`test_triton_*` run in Triton's interpreter alone (TRITON_INTERPRET=1, a process of its own: `make test` starts it);
the others, which compile ahead of time, outside it."""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = ["test_ahead_*.py" if os.environ.get("TRITON_INTERPRET") == "1" else "test_triton_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(poison: None) -> None: ...
