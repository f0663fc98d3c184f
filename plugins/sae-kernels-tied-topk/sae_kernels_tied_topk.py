"""`tied_topk`: a TopK sparse autoencoder whose decoder is its encoder, as a plugin.

Half the parameters and half the optimiser's state, for a somewhat worse reconstruction. Source: tied weights as in
the first SAEs on language models, arXiv 2309.08600; the TopK activation, arXiv 2406.04093.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sae_kernels as sk
from sae_kernels.specs import Architecture


@dataclass(frozen=True)
class TiedConfig(sk.CoderConfig):
    """`k` active latents a token."""

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k()


class TiedTopK(sk.SparseCoder):
    """f = ReLU(TopK(W (x − b_dec) + b_enc));  x̂ = f W + b_dec;  loss = mean ‖x − x̂‖²; rows of W have norm 1."""

    Config = TiedConfig
    architecture = "tied_topk"
    config: TiedConfig

    def __init__(self, config: TiedConfig) -> None:
        super().__init__(config)
        self.W_enc = nn.Parameter(nn.functional.normalize(torch.randn(config.d_sae, config.d_in)))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def W_dec(self) -> Tensor:
        """The encoder itself: by the rule of rows, row i of both is latent i."""
        return self.W_enc

    def encode(self, x: Tensor) -> sk.SparseCodes:
        """x (…, d_in) → codes (…, k)."""
        return sk.encode(x - self.b_dec, self.W_enc, self.b_enc, sk.TopK(self.config.k))

    def loss(self, x: Tensor, target: Tensor | None = None, *, dead: Tensor | None = None) -> sk.Loss:
        """Squared error a token."""
        target = self.check_target(x, target)
        codes = self.encode(x)
        reconstruction = self.decode(codes)
        mse = (reconstruction - target).pow(2).sum(-1).mean()
        return sk.Loss(mse, {"mse": mse.detach()}, codes, reconstruction)

    @torch.no_grad()
    def initialise(self, x: Tensor, target: Tensor) -> None:
        """b_dec ← the mean."""
        self.b_dec.copy_(target.mean(0))

    @torch.no_grad()
    def after_step(self) -> None:
        """Back to unit norm."""
        self.W_enc.copy_(nn.functional.normalize(self.W_enc))


@sk.hookimpl
def sae_kernels_architectures() -> list[Architecture]:
    """tied_topk."""
    return [Architecture("tied_topk", "TopK with W_dec = W_enc (2309.08600, 2406.04093)", TiedTopK)]
