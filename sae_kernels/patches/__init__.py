"""Other libraries' modules, made faster in place."""

from __future__ import annotations

from .patch import PatchHandle, patch

__all__ = ["PatchHandle", "patch"]
