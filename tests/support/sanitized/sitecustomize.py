"""`make sanitize`: Python takes the C++ extension from SAE_KERNELS_SANITIZED, whatever is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec


class Sanitized:
    """Ahead of every other finder, an editable installation's included."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "sae_kernels._cpu":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["SAE_KERNELS_SANITIZED"])


if "SAE_KERNELS_SANITIZED" in os.environ:
    sys.meta_path.insert(0, Sanitized)  # pyright: ignore[reportArgumentType]
