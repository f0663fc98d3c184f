"""`evaluate_run`: the evaluation of a training run, from its directory."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import registry
from ..adapters import ActivationSource
from ..errors import ArgumentError, FormatError, SaeKernelsError
from ..files import atomic_file
from ..formats import load
from ..plugins import plugins
from ..specs import resolve
from .loop import evaluate

CONFIG, CODER, RESULTS = "config.json", "coder", "evaluation.json"


def evaluate_run(
    directory: str | os.PathLike[str],
    *,
    max_tokens: int | None = 100_000,
    batch_tokens: int = 4096,
    metrics: Iterable[str] | None = None,
    ablation: str = "zero",
    loss_tokens: int | None = None,
    bootstrap: int = 1000,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate `directory`/coder on data held out from its training; arguments and result as for `evaluate`.

    The data come from the run's own adapter with `split = "heldout"`; an adapter without splits gives what
    it gave in training, and "data" in the result says so. Of a run on a cache (`sae-kernels cache`), what the cache was
    made from is read again, where it can be opened. The result is written to
    `directory`/evaluation.json, complete or not at all, and handed to the hook `sae_kernels_evaluation`.

    Raises:
        ArgumentError: the directory is not a training run's.
        FormatError: its configuration or coder is damaged.
        Otherwise as `evaluate`.
    """
    path = Path(directory)
    table = activations_table(path)
    coder = load(path / CODER)
    source, data = open_heldout(table)
    results = evaluate(
        coder,
        source,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        metrics=metrics,
        ablation=ablation,
        loss_tokens=loss_tokens,
        bootstrap=bootstrap,
        progress=progress,
    )
    results = {"data": data, **results}
    text = json.dumps(results, indent=2, allow_nan=False, default=str)
    with atomic_file(path / RESULTS) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    plugins().notify("sae_kernels_evaluation", run=path, results=results)
    return results


def open_heldout(table: dict[str, Any]) -> tuple[ActivationSource, dict[str, str]]:
    """The source of an `[activations]` table on its held-out split, and a description of it."""
    keys = dict(table)
    name = keys.pop("adapter")
    if name == "tensors" and (origin := _origin(keys.get("path"))) is not None:
        try:
            source, data = open_heldout(origin)
        except (SaeKernelsError, OSError) as error:
            warnings.warn(
                f"{keys['path']}: what it was made from can't be read, so its own last rows are: {error}", stacklevel=2
            )
        else:
            return source, {**data, "cache": str(keys["path"])}
    open_source = resolve(registry.adapters.get(name).open)
    if "split" in inspect.signature(open_source).parameters:
        keys["split"] = "heldout"
        keys.pop("epochs", None)  # of training; once is enough here
        return open_source(**keys), {"adapter": name, "split": "heldout"}
    return open_source(**keys), {"adapter": name, "split": "none: the adapter has no held-out data"}


def _origin(path: Any) -> dict[str, Any] | None:
    """The `[activations]` table that a cache was made from; None for other shards, and for sources without a split."""
    manifest = Path(str(path)) / "cache.json"
    if isinstance(path, list) or not manifest.is_file():
        return None
    try:
        table = json.loads(manifest.read_text(encoding="utf-8"))["activations"]
        opens = resolve(registry.adapters.get(table["adapter"]).open)
    except (ValueError, KeyError, TypeError, SaeKernelsError):
        return None
    return table if "split" in inspect.signature(opens).parameters else None


def activations_table(path: Path) -> dict[str, Any]:
    """The `[activations]` table of a finished run.

    Raises:
        ArgumentError: the directory is not a training run's.
        FormatError: its configuration is damaged.
    """
    if not (path / CONFIG).is_file():
        raise ArgumentError(f"{path}: no {CONFIG}, expected a directory that `sae-kernels train` wrote")
    if not (path / CODER).exists():
        raise ArgumentError(f"{path}: no {CODER}, the run has not finished; `sae-kernels train` goes on with it")
    try:
        table = json.loads((path / CONFIG).read_text(encoding="utf-8"))["activations"]
        if not isinstance(table["adapter"], str):
            raise TypeError
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise FormatError(f"{path / CONFIG}: expected JSON with a table `activations` that names its adapter") from None
    return table
