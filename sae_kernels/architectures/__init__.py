"""Architectures: one file each, registered by the hook a stranger would use."""

from __future__ import annotations

from ._base import CoderConfig, Loss, SparseCoder
from .create import coder_class, coder_config, create

__all__ = ["CoderConfig", "Loss", "SparseCoder", "coder_class", "coder_config", "create"]
