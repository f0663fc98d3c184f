"""What can be done to a latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..errors import ArgumentError, IndexRangeError


class Edit(Protocol):
    """A change of one latent's activation, token by token. Write your own with these three."""

    @property
    def latent(self) -> int:
        """Which latent."""
        ...

    @property
    def reads(self) -> bool:
        """Whether `apply(f) − f` depends on f; where no edit's does, nothing needs to be encoded."""
        ...

    def apply(self, acts: Tensor) -> Tensor:
        """The latent's activation of each token, (tokens,) → the edited ones; 0 where it was not active."""
        ...


@dataclass(frozen=True)
class Add:
    """f → f + strength: adds strength · d_i, the latent's decoder direction, at every token."""

    latent: int
    strength: float
    reads = False

    def __post_init__(self) -> None:
        _check(self.latent, strength=self.strength)

    def apply(self, acts: Tensor) -> Tensor:
        return acts + self.strength


@dataclass(frozen=True)
class Clamp:
    """f → value, at every token, also where the latent was not active."""

    latent: int
    value: float
    reads = True

    def __post_init__(self) -> None:
        _check(self.latent, value=self.value)

    @classmethod
    def times_max(cls, latent: int, maximum: float, times: float = 10.0) -> Clamp:
        """f → times · maximum, the largest activation seen on a corpus (`FeatureTable.max_activation`).

        10 × is how Golden Gate Claude was made.
        """
        return cls(latent, float(times) * float(maximum))

    def apply(self, acts: Tensor) -> Tensor:
        return acts.new_full(acts.shape, self.value)


@dataclass(frozen=True)
class Scale:
    """f → factor · f: changes the latent where it is active."""

    latent: int
    factor: float
    reads = True

    def __post_init__(self) -> None:
        _check(self.latent, factor=self.factor)

    def apply(self, acts: Tensor) -> Tensor:
        return acts * self.factor


@dataclass(frozen=True)
class Ablate:
    """f → 0."""

    latent: int
    reads = True

    def __post_init__(self) -> None:
        _check(self.latent)

    def apply(self, acts: Tensor) -> Tensor:
        return acts.new_zeros(acts.shape)


def check_edits(edits: Edit | Sequence[Edit], d_sae: int) -> list[Edit]:
    """As a list.

    Raises:
        ArgumentError: something that is no edit.
        IndexRangeError: a latent that the coder does not have.
    """
    found = list(edits) if isinstance(edits, Sequence) else [edits]
    for edit in found:
        if not all(hasattr(edit, name) for name in ("latent", "reads", "apply")):
            raise ArgumentError(f"edit {edit!r}, expected Add, Clamp, Scale or Ablate")
        if not 0 <= edit.latent < d_sae:
            raise IndexRangeError(f"{edit}: latent {edit.latent}, expected 0 <= latent < d_sae = {d_sae}")
    return found


def _check(latent: int, **numbers: float) -> None:
    if isinstance(latent, bool) or not isinstance(latent, int):
        raise ArgumentError(f"latent = {latent!r} ({type(latent).__name__}), expected an integer")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ArgumentError(f"{name} = {number!r}, expected a finite number")
