"""The learning rate over the steps of a run."""

from __future__ import annotations

import math


def lr_factor(step: int, total: int, warmup: int, decay_fraction: float, schedule: str = "linear") -> float:
    """What the peak rate is multiplied by in step 0 ≤ step < total: a linear rise, a plateau, a fall towards 0.

    (step + 1) / warmup at first. At the end, with r = (total - step) / (decay_fraction · total): r (`linear`),
    (1 - cos πr) / 2 (`cosine`), or 1 (`constant`: no fall). The smaller where they overlap.
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    decay = decay_fraction * total
    left = (total - step) / decay if total - step < decay else 1.0
    fall = {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "constant": 1.0}[schedule]
    return min(rise, fall)
