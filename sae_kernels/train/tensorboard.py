"""TensorBoard events, for runs whose configuration says `tensorboard = true`: a life-cycle plugin like any
other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..hookspecs import hookimpl
from ..plugins import plugins

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from .run import Run

_writers: dict[Path, SummaryWriter] = {}


def require() -> None:
    """Raise ConfigError unless events can be written: the package is there and the plugin loaded."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise ConfigError(
            "[training] tensorboard = true, but the package is not installed: pip install 'sae-kernels[tensorboard]'"
        ) from None
    info = plugins().infos.get("tensorboard")
    if info is None or info.status != "loaded":
        reason = "it is not registered" if info is None else f"{info.status}: {info.error}"
        raise ConfigError(f"[training] tensorboard = true, but the plugin is not loaded ({reason})")


@hookimpl
def sae_kernels_train_start(run: Run) -> None:
    """Open the events; those after the checkpoint that the run goes on from are struck out."""
    if run.config.training.tensorboard:
        _writers[run.directory] = _open(run.directory, purge_step=run.step + 1 if run.step else None)


@hookimpl
def sae_kernels_train_step(run: Run, step: int, metrics: dict[str, float]) -> None:
    """Every figure under train/, over steps."""
    if writer := _writers.get(run.directory):
        _add(writer, "train", {name: value for name, value in metrics.items() if name != "step"}, step)


@hookimpl
def sae_kernels_train_end(run: Run, reason: str) -> None:
    """Close the events."""
    if writer := _writers.pop(run.directory, None):
        writer.close()


@hookimpl
def sae_kernels_evaluation(run: Path, results: dict[str, Any]) -> None:
    """Every number of the results under evaluation/, at the run's last step."""
    try:
        wanted = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]["tensorboard"]
        step = json.loads((run / "run.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):  # no run of ours
        return
    if wanted:
        writer = _open(run)
        _add(writer, "evaluation", results, step)
        writer.close()


def _open(directory: Path, purge_step: int | None = None) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)


def _add(writer: SummaryWriter, group: str, figures: Mapping[str, Any], step: int) -> None:
    for name, value in _numbers(group, figures):
        writer.add_scalar(name, value, step)


def _numbers(prefix: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{name}", value
