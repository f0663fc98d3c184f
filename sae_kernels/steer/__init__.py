"""Steering: a language model run with latents added, clamped, scaled or ablated."""

from __future__ import annotations

from .edits import Ablate, Add, Clamp, Edit, Scale
from .steering import steer

__all__ = ["Ablate", "Add", "Clamp", "Edit", "Scale", "steer"]
