"""Other libraries, imported or skipped with the reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from types import ModuleType

import pytest

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # with Triton installed and no GPU it cannot be imported


def peer(module: str, distribution: str) -> ModuleType:
    """A module of another library; skips the test file where that is not installed. Its warnings are its own."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{distribution} is not installed; `make peers` installs it", allow_module_level=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
