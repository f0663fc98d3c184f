"""Every test here runs on poisoned memory."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore = [] if find_spec("hypothesis") else ["test_anything.py"]  # a machine with a GPU may lack it


@pytest.fixture(autouse=True)
def _poisoned(poison: None) -> None: ...
