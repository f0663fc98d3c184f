"""Everything here is tiny, and runs on one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _small(one_thread: None) -> None:
    """See `one_thread`."""
