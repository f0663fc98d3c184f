"""Weight formats: `load` recognises them, `save` takes one by name."""

from __future__ import annotations

from .loading import load, save

__all__ = ["load", "save"]
