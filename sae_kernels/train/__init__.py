"""Training: a configuration, the loop that carries it out, and exact resumption."""

from __future__ import annotations

from .config import Config, load_config
from .run import Run
from .sweep import load_sweep
from .trainer import train, train_together

__all__ = ["Config", "Run", "load_config", "load_sweep", "train", "train_together"]
