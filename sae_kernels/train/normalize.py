"""Normalisation of activations: estimated once before the first step, and folded into the weights that are saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import ActivationSource
from ..architectures import SparseCoder
from ..architectures._affine import Affine
from ..errors import TrainingError

_ROWS = 4096  # in float64 at a time
_MOST_EMPTY_BLOCKS = 1000  # at the start, before a source without end is given up


@dataclass(frozen=True, eq=False)
class Normalization:
    """What a coder sees of input and target; the same `Affine` twice where they are one tensor."""

    input: Affine
    target: Affine

    def apply(self, x: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both, normalised in float32 at least, then in `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        normalised = self.input.apply(x.to(wide)).to(dtype)
        return normalised, normalised if target is x else self.target.apply(target.to(wide)).to(dtype)

    def folded(self, coder: SparseCoder) -> SparseCoder:
        """A copy on the CPU that takes and gives activations as they are; folded in float32 at least."""
        dtype = coder.W_enc.dtype
        twin = copy.deepcopy(coder).to("cpu", torch.promote_types(dtype, torch.float32))
        twin.fold(self.input, self.target)
        return twin.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds them; without the target's where it is the input's."""
        parts = {"input": self.input} if self.target is self.input else {"input": self.input, "target": self.target}
        return {f"{side}_{name}": getattr(part, name) for side, part in parts.items() for name in ("mean", "scale")}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Normalization:
        """What `tensors` gave."""
        sides = [
            Affine(tensors[f"{s}_mean"], tensors[f"{s}_scale"]) for s in ("input", "target") if f"{s}_mean" in tensors
        ]
        return cls(sides[0], sides[-1])


class Estimate:
    """The normalisation of a source's first `tokens` rows, or of all where there are fewer, block by block:

    s = √d / E‖x − μ‖, with μ = 0 (`sqrt_d`) or the mean (`sqrt_d_centred`: the rows are read twice), so that afterwards
    E‖x‖ = √d; for input and target separately. `n_layers` > 1: features are that many layers side by side, each with a
    scale of its own. Sums in float64.

    Source: Anthropic, Update on how we train SAEs (April 2024).
    """

    def __init__(self, source: ActivationSource, mode: str, tokens: int, n_layers: int = 1) -> None:
        self.source, self.mode, self.tokens, self.n_layers = source, mode, tokens, n_layers
        self.passes = 2 if mode == "sqrt_d_centred" else 1
        self._same = True
        self._sides = tuple(_Moments(d, n_layers) for d in (source.d_in, source.d_out))
        self.seen = 0

    def next_pass(self) -> None:
        """Once more from the first block, now about the mean."""
        for side in self._sides:
            side.mean = side.total / max(self.seen, 1)
        self.seen = 0

    def wants(self, block: int) -> bool:
        """Whether this block is needed."""
        end = self.source.n_blocks
        return self.seen < self.tokens and (end is None or block < end)

    def add(self, block: int, *, norms: bool) -> None:
        """A block; its norms count in the last pass alone."""
        batch = self.source.block(block)
        rows = slice(0, self.tokens - self.seen)
        self._same = self._same and batch.target is batch.input
        pairs = (
            ((self._sides[0], batch.input),)
            if self._same
            else zip(self._sides, (batch.input, batch.target), strict=True)
        )
        for side, x in pairs:
            for part in x[rows].split(_ROWS):
                side.add(part.double(), norms)
        self.seen += len(batch.input[rows])

    def result(self) -> Normalization:
        """The normalisation.

        Raises:
            TrainingError: no rows, values that are not finite, or nothing but zeros (centred: one row again and again).
        """
        input = self._sides[0].affine(self.seen, "input")
        return Normalization(input, input if self._same else self._sides[1].affine(self.seen, "target"))


def estimate(jobs: Sequence[Estimate]) -> list[Normalization]:
    """Several at once: sources that share a language model's forward passes are asked for the same blocks in turn."""
    for number in range(max((job.passes for job in jobs), default=0)):
        going = [job for job in jobs if number < job.passes]
        if number:
            for job in going:
                job.next_pass()
        block = 0
        while wanting := [job for job in going if job.wants(block)]:
            for job in wanting:
                job.add(block, norms=number == job.passes - 1)
            block += 1
            if block >= _MOST_EMPTY_BLOCKS and not any(job.seen for job in wanting):
                break  # `result` says so
    return [job.result() for job in jobs]


class _Moments:
    """Sums over rows of d features in `n_layers` equal parts."""

    def __init__(self, d: int, n_layers: int) -> None:
        self.n_layers = n_layers
        self.total = torch.zeros(d, dtype=torch.float64)
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.norms = torch.zeros(n_layers, dtype=torch.float64)

    def add(self, x: Tensor, norms: bool) -> None:
        if not norms:
            self.total += x.sum(0).cpu()
            return
        parts = (x - self.mean.to(x.device)).unflatten(1, (self.n_layers, -1))
        self.norms += parts.norm(dim=2).sum(0).cpu()

    def affine(self, n: int, what: str) -> Affine:
        width = len(self.total) // self.n_layers
        average = self.norms / max(n, 1)
        if n == 0 or not bool(torch.isfinite(average).all()) or not bool((average > 0).all()):
            raise TrainingError(
                f"normalisation: E‖x - μ‖ of the {what}'s first {n} rows is {average.tolist()}, expected finite and > 0"
            )
        scale = math.sqrt(width) / average
        return Affine(self.mean.float(), scale.float().repeat_interleave(width))
