"""What every library is given: the same weights and the same activations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bench import cases

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Problem:
    """x (N, d), W_enc and W_dec (d_sae, d), rows of W_dec of unit norm; pre-acts of about unit size."""

    size: cases.Size
    dtype: torch.dtype
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    @classmethod
    def of(cls, size: cases.Size, dtype: torch.dtype, tokens: int | None = None) -> Problem:
        """Drawn, the same every time; with another number of tokens than the size has."""
        size = size if tokens is None else replace(size, n=tokens)
        W_enc, b_enc, W_dec, b_dec = cases.dictionary(size)
        tensors = (cases.normal(size.n, size.d), W_enc, b_enc, functional.normalize(W_dec, dim=1), b_dec)
        return cls(size, dtype, *(tensor.to(dtype) for tensor in tensors))

    def in_float32(self) -> Problem:
        """The same numbers: what both contenders of a narrower dtype should come to."""
        x, *weights = (tensor.float() for tensor in (self.x, self.W_enc, self.b_enc, self.W_dec, self.b_dec))
        return Problem(self.size, torch.float32, x, *weights)

    @property
    def threshold(self) -> float:
        """Above which about k of a token's pre-acts lie: they are normal, with the variance 1 + 0.1² of a product of
        `cases.dictionary` and its bias."""
        share = torch.tensor(1 - self.size.k / self.size.d_sae, dtype=torch.float64)
        return float(torch.special.ndtri(share)) * (1 + 0.1**2) ** 0.5
