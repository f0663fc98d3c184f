"""Training: a configuration, the loop that carries it out, and exact resumption."""

from __future__ import annotations

from .config import Config, load_config
from .run import Run
from .trainer import train

__all__ = ["Config", "Run", "load_config", "train"]
