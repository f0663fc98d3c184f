"""What is raced on a GPU: sizes, and tensors of one size, dtype and distribution of latents, drawn where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Size
from sae_kernels import SparseCodes

CASES = {
    "A": Size(8192, 2304, 65_536, 64),
    "B": Size(16_384, 4096, 131_072, 64),  # N·M is 2**31
    "C": Size(4096, 768, 16_384, 32),
}
DRY = {  # for Triton's interpreter: milliseconds a program
    "A": Size(6, 19, 70, 5),
    "B": Size(7, 24, 90, 4),
    "C": Size(4, 16, 64, 3),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DRAWS = ("uniform", "zipf")


@dataclass(frozen=True)
class Problem:
    """Tensors are made when first asked for, and stay."""

    size: Size
    dtype: torch.dtype
    draw: str  # of DRAWS
    device: torch.device
    dry: bool = False

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def normal(self, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
        """Gaussian; fixed by the seed on one kind of device."""
        source = torch.Generator(self.device).manual_seed(seed)
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0, scale, generator=source)

    @cached_property
    def x(self) -> Tensor:
        return self.normal(self.size.n, self.size.d, seed=0)

    @cached_property
    def W_enc(self) -> Tensor:
        return self.normal(self.size.d_sae, self.size.d, seed=1, scale=self.size.d**-0.5)

    @cached_property
    def W_dec(self) -> Tensor:
        return self.normal(self.size.d_sae, self.size.d, seed=2, scale=self.size.d**-0.5)

    @cached_property
    def b_dec(self) -> Tensor:
        return self.normal(self.size.d, seed=3, scale=0.1)

    @cached_property
    def b_enc(self) -> Tensor:
        """Zipf: a bias falling with the logarithm of a latent's (random) rank, so that few latents win most tokens."""
        b = self.normal(self.size.d_sae, seed=4, scale=0.1)
        if self.draw == "zipf":
            rank = torch.argsort(self.normal(self.size.d_sae, seed=5).float()) + 1.0
            b += (2 - 3 * rank.log() / math.log(self.size.d_sae)).to(self.dtype)
        return b

    @cached_property
    def cotangent(self) -> Tensor:
        return self.normal(self.size.n, self.size.d, seed=6)

    @cached_property
    def codes(self) -> SparseCodes:
        """Fixed-width codes without empty slots, latents drawn at random (a row may hold one twice)."""
        n, k, m = self.size.n, self.size.k, self.size.d_sae
        source = torch.Generator(self.device).manual_seed(7)
        where = torch.rand(n, k, generator=source, device=self.device, dtype=torch.float64)
        if self.draw == "zipf":  # P(i) ∝ 1/(i+1); in a random order, as in a dictionary
            weights = 1 / torch.arange(1, m + 1, device=self.device, dtype=torch.float64)
            ends = weights.cumsum(0) / weights.sum()
            drawn = torch.searchsorted(ends, where).clamp_max(m - 1)
            drawn = torch.argsort(self.normal(m, seed=5).float())[drawn]
        else:
            drawn = (where * m).long().clamp_max(m - 1)
        values = self.normal(n, k, seed=8).abs() + 0.1
        return SparseCodes(values, drawn.int(), m)

    @cached_property
    def indices(self) -> Tensor:
        """The codes' latents as PyTorch wants them."""
        return self.codes.indices.long()

    @cached_property
    def theta(self) -> float:
        """A threshold that about k latents a token pass."""
        z = F.linear(self.x[:64], self.W_enc, self.b_enc).float()
        return z.topk(self.size.k).values[:, -1].mean().item()

    def acts(self) -> Tensor:
        """(N, M), dense: N·M numbers, made anew."""
        acts = torch.zeros(self.size.n, self.size.d_sae, dtype=self.dtype, device=self.device)
        return acts.scatter_add_(1, self.indices, self.codes.values)

    @property
    def dense_bytes(self) -> int:
        """Bytes of one (N, M) tensor."""
        return self.size.n * self.size.d_sae * self.item
