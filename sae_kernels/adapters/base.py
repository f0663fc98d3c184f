"""What an adapter offers to training, evaluation and steering: protocols, so nothing to inherit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..errors import DtypeError, ShapeError, describe
from .hook_points import Points, Replace


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """Activations of some tokens: row n of every tensor belongs to one token.

    Shapes:
        input: (tokens, d_in), floating
        target: (tokens, d_out), the dtype of input; for an autoencoder the same object as input
        ids: (tokens,) int64, the token at the hook point, or None where there are no tokens
        sequence: (tokens,) int64, row of `LanguageSource.sequences` it was read from, or None
        position: (tokens,) int64, its place in that sequence, or None
    Raises:
        ShapeError, DtypeError: the tensors disagree.
    """

    input: Tensor
    target: Tensor
    ids: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None

    def __post_init__(self) -> None:
        if self.input.ndim != 2 or self.target.ndim != 2 or len(self.input) != len(self.target):
            raise ShapeError(
                f"activations: input {describe(self.input)}, target {describe(self.target)}; "
                "expected (tokens, d_in) and (tokens, d_out)"
            )
        if not self.input.is_floating_point() or self.input.dtype != self.target.dtype:
            raise DtypeError(
                f"activations: input {describe(self.input)}, target {describe(self.target)}; "
                "expected one floating dtype"
            )
        for name in ("ids", "sequence", "position"):
            value: Tensor | None = getattr(self, name)
            if value is not None and value.shape != self.input.shape[:1]:
                raise ShapeError(f"activations: {name} {describe(value)}, expected ({len(self)},)")

    def __len__(self) -> int:
        return len(self.input)


class ActivationSource(Protocol):
    """Activations in numbered blocks.

    `block(i)` returns the same bits whenever it is asked for (same machine, versions and thread count), so
    that training resumes exactly from (block, row) and needs nothing else saved. Blocks may differ in length,
    and be empty.
    """

    @property
    def d_in(self) -> int:
        """Features of `ActivationBatch.input`."""
        ...

    @property
    def d_out(self) -> int:
        """Features of `ActivationBatch.target`; d_in for an autoencoder."""
        ...

    @property
    def n_blocks(self) -> int | None:
        """How many blocks there are; None if they never end."""
        ...

    def block(self, index: int) -> ActivationBatch:
        """Block 0 <= index < n_blocks, detached."""
        ...


class LanguageModel(Protocol):
    """A causal language model that can be read and steered at hook points.

    `ids` is int64, (tokens,) or (sequences, tokens); results keep these leading dimensions.
    """

    @property
    def special_ids(self) -> Set[int]:
        """Tokens that stand for no text (bos, eos, padding, …)."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token every sequence starts with, if the model has one."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the model has one."""
        ...

    @property
    def max_context(self) -> int | None:
        """The most tokens a sequence may have; None without limit."""
        ...

    def tokenize(self, text: str) -> Tensor:
        """Token ids of a text, (tokens,) int64 on the CPU, without special tokens added."""
        ...

    def detokenize(self, ids: Tensor) -> str:
        """Text of (tokens,) ids."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token scores, (…, tokens, vocabulary), without gradient."""
        ...

    def activations(self, ids: Tensor, points: Iterable[str]) -> dict[str, Tensor]:
        """What passes each hook point, (…, tokens, d), without gradient."""
        ...

    def intervene(self, replace: Mapping[str, Replace]) -> AbstractContextManager[None]:
        """Within the block, activations at a point become `replace[point](activation)`, of the same shape."""
        ...

    def generate(self, prompt: str, n_tokens: int, *, seed: int = 0, temperature: float = 1.0) -> str:
        """The prompt's continuation: at most n_tokens sampled tokens (the likeliest at temperature 0)."""
        ...

    def d_of(self, point: str) -> int:
        """How many features a hook point has."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A language model that can be read before it is steered: what codes of several layers need, whose first layer is
    written to before the last one is passed."""

    def read_ahead(
        self, points: Iterable[str], take: Callable[[dict[str, Tensor]], None]
    ) -> AbstractContextManager[None]:
        """Within the block, every forward pass comes after one on the same tokens without what is entered in the block;
        `take` gets what passed each point in that one, (sequences, tokens, d)."""
        ...


@runtime_checkable
class LanguageSource(ActivationSource, Protocol):
    """A source that reads a language model: evaluation replaces activations and compares losses.

    Where `hook_in` or `hook_out` is a tuple, the features of its hook points stand side by side in that order.
    """

    model: LanguageModel
    sequences: Tensor  # (n, context_length), token ids
    hook_in: Points
    hook_out: Points
