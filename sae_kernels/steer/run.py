"""`steer_run`: text with and without edits, from the directory of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..adapters import LanguageSource
from ..errors import ArgumentError
from ..evaluate.run import CODER, activations_table, open_heldout
from ..formats import load
from .edits import Edit
from .steering import steer


class Texts(NamedTuple):
    """A prompt's continuations."""

    plain: str
    steered: str


def steer_run(
    directory: str | os.PathLike[str],
    edits: Edit | Sequence[Edit],
    prompt: str,
    *,
    n_tokens: int = 40,
    seed: int = 0,
    temperature: float = 1.0,
) -> Texts:
    """Continue `prompt` with the language model that a run was trained on, as it is and with the edits, at the hook
    points of the run: those of all its layers, for a crosscoder or a cross-layer transcoder.

    Raises:
        ArgumentError: the directory is not a training run's, or its activations do not come from one language model.
        FormatError: its configuration or coder is damaged.
        Otherwise as `steer` and the model's `generate`.
    """
    path = Path(directory)
    table = activations_table(path)
    coder = load(path / CODER)
    source, _ = open_heldout(table)
    if not isinstance(source, LanguageSource):
        raise ArgumentError(
            f"{path}: what the adapter {table['adapter']!r} gives comes from no language model, expected one to steer"
        )
    model, points = source.model, (source.hook_in, source.hook_out)

    def text() -> str:
        return model.generate(prompt, n_tokens, seed=seed, temperature=temperature)

    with steer(model, coder, points, edits):
        steered = text()
    return Texts(text(), steered)
