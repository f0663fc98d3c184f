"""Every test here runs on poisoned memory."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _poisoned(poison: None) -> None: ...
