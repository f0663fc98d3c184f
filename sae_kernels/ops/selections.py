"""Which latents of a row stay: the selections `encode` takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ._checks import positive_integer


@dataclass(frozen=True)
class TopK:
    """The k largest pre-acts of each row; ties to the smaller latent, NaN above everything.

    `relu`: negative ones become 0, which is an empty slot; `relu=False` keeps their sign. `among`: bool (d_sae,),
    choose only where True; with fewer than k True, the rest of the slots are empty. Source: arXiv 2406.04093.
    """

    k: int
    relu: bool = True
    among: Tensor | None = None

    def __post_init__(self) -> None:
        positive_integer("k", self.k)
        if self.among is not None and not isinstance(self.among, Tensor):
            raise DtypeError(f"TopK: among is a {type(self.among).__name__}, expected a bool tensor (d_sae,)")
        if self.among is not None and self.among.dtype != torch.bool:
            raise DtypeError(f"TopK: among is {describe(self.among)}, expected bool (d_sae,)")


@dataclass(frozen=True)
class Threshold:
    """The pre-acts z > θ, θ a number or a (d_sae,) tensor: JumpReLU, ReLU (θ = 0), BatchTopK at inference. NaN is kept.

    θ receives no gradient: an architecture gives it the estimate its paper defines. Source: arXiv 2407.14435.
    """

    theta: float | Tensor

    def __post_init__(self) -> None:
        theta = self.theta
        if isinstance(theta, Tensor):
            if not theta.dtype.is_floating_point:
                raise DtypeError(f"Threshold: theta is {describe(theta)}, expected a floating dtype")
            if theta.dim() > 1:
                raise ShapeError(f"Threshold: theta is {describe(theta)}, expected a number or (d_sae,)")
        elif isinstance(theta, bool) or not isinstance(theta, (int, float)) or theta != theta:
            raise ArgumentError(f"Threshold: theta = {theta!r}, expected a number or a (d_sae,) tensor")


@dataclass(frozen=True)
class BatchTopK:
    """The k·N largest pre-acts of a batch of N rows; ties to the smaller row, then latent. Ragged.

    `relu`: negative ones become 0, which is an empty slot. Source: arXiv 2412.06410.
    """

    k: int
    relu: bool = True

    def __post_init__(self) -> None:
        positive_integer("k", self.k)


Selection = TopK | Threshold | BatchTopK
