"""The learning rate over the steps of a run."""

from __future__ import annotations


def lr_factor(step: int, total: int, warmup: int, decay_fraction: float) -> float:
    """What the peak rate is multiplied by in step 0 ≤ step < total: a linear rise, a plateau, a linear fall
    towards 0.

    (step + 1) / warmup at first; (total - step) / (decay_fraction · total) at the end; the smaller where they
    overlap.
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    decay = decay_fraction * total
    fall = (total - step) / decay if total - step < decay else 1.0
    return min(rise, fall)
