"""Metrics of the codes alone: how many latents are active, how often, and which never."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .batch import EvalBatch
from .quotient import Quotient

_LOWEST, _PER_DECADE = -8, 2  # the histogram's first edge as a power of ten, and its bins a decade
DENSE = 0.1


class L0(Quotient):
    """L0 = E[#{i : f_i ≠ 0}]: active latents a token."""

    figure: ClassVar[str] = "l0"

    def terms(self, batch: EvalBatch) -> tuple[Tensor, Tensor]:
        """Active latents and 1."""
        active = batch.codes.l0().reshape(-1)
        return active, torch.ones_like(active)


class Density:
    """Density of latent i = firings of i / tokens; dead: no firing in the window, all tokens evaluated.

    The literature counts a latent dead after 10 M silent tokens; over a shorter window more of them look so,
    hence the window stands beside the figure.
    """

    def __init__(self) -> None:
        self.firings: Tensor | None = None
        self.tokens = 0

    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""
        codes = batch.codes
        fired = torch.bincount(codes.indices[codes.values != 0].long(), minlength=codes.d_sae)
        self.firings = fired if self.firings is None else self.firings + fired
        self.tokens += len(batch)

    def result(self) -> dict[str, Any]:
        """`dead_fraction`, `dead_window_tokens`, `dense_fraction`, `density_histogram`.

        dense: active on over a tenth of the tokens. The histogram is of the latents that fired: `counts[j]` of
        them have a density from 10^log10_edges[j] to the next edge.
        """
        if self.firings is None or self.tokens == 0:
            return {"dead_fraction": float("nan"), "dead_window_tokens": 0, "dense_fraction": float("nan")}
        firings = self.firings.cpu().double()
        density = firings / self.tokens
        bins = -_LOWEST * _PER_DECADE
        places = ((density[firings > 0].log10() - _LOWEST) * _PER_DECADE).floor().long().clamp(0, bins - 1)
        return {
            "dead_fraction": float((firings == 0).double().mean()),
            "dead_window_tokens": self.tokens,
            "dense_fraction": float((density > DENSE).double().mean()),
            "density_histogram": {
                "log10_edges": [_LOWEST + j / _PER_DECADE for j in range(bins + 1)],
                "counts": torch.bincount(places, minlength=bins).tolist(),
            },
        }
