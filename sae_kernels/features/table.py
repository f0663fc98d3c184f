"""`FeatureTable`: what each latent did on a corpus, and where it was strongest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IndexRangeError


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Each latent's n strongest tokens and its statistics over `n_tokens` tokens that are not special.

    Shapes:
        values: (d_sae, n) float32, descending; −inf where a latent fired fewer than n times tokens: (d_sae,
        n) int64, which token of the stream; ties go to the earlier; −1 where unused ids, sequence, position:
        (d_sae, n) int64, that token's id and its place in `LanguageSource.sequences`;
            −1 where unused; None where the source has no tokens
        firings: (d_sae,) int64, on how many tokens the latent was active
        sums: (d_sae,) float64, of its activations
    All on the CPU.
    """

    values: Tensor
    tokens: Tensor
    firings: Tensor
    sums: Tensor
    n_tokens: int
    ids: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.values)

    @property
    def n(self) -> int:
        """Tokens kept of each latent."""
        return self.values.shape[1]

    @property
    def max_activation(self) -> Tensor:
        """(d_sae,) float32; 0 for a latent that never fired."""
        return torch.where(self.tokens[:, 0] >= 0, self.values[:, 0], 0.0)

    @property
    def density(self) -> Tensor:
        """(d_sae,) float64: firings / tokens."""
        return self.firings.double() / max(self.n_tokens, 1)

    @property
    def mean_active(self) -> Tensor:
        """(d_sae,) float64: mean activation over the tokens where the latent fired; 0 if never."""
        return self.sums / self.firings.clamp(min=1)

    def check_latent(self, latent: int) -> int:
        """Raises IndexRangeError unless the table has that latent."""
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < self.d_sae:
            raise IndexRangeError(f"latent = {latent!r}, expected an integer from 0 to {self.d_sae - 1}")
        return latent
