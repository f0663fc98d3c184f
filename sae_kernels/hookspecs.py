"""The hooks a plugin may implement. Each has a section in docs/plugins.md and a test.

The first group *returns* specs and is asked once; the second rides along with training and evaluation. No hook is
called inside an op.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from . import specs
    from .train.run import Run

PROJECT = "sae_kernels"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sae_kernels_kernels() -> Iterable[specs.Kernel]:  # pyright: ignore[reportReturnType]
    """Kernels: an op on a backend."""


@hookspec
def sae_kernels_architectures() -> Iterable[specs.Architecture]:  # pyright: ignore[reportReturnType]
    """Architectures for `create`, training and loading."""


@hookspec
def sae_kernels_adapters() -> Iterable[specs.Adapter]:  # pyright: ignore[reportReturnType]
    """Sources of activations for the `[activations]` table of a training configuration."""


@hookspec
def sae_kernels_formats() -> Iterable[specs.Format]:  # pyright: ignore[reportReturnType]
    """Weight formats for `load` and `save`."""


@hookspec
def sae_kernels_patches() -> Iterable[specs.Patch]:  # pyright: ignore[reportReturnType]
    """Libraries whose modules `patch` makes faster."""


@hookspec
def sae_kernels_metrics() -> Iterable[specs.Metric]:  # pyright: ignore[reportReturnType]
    """Metrics that `evaluate` computes."""


@hookspec
def sae_kernels_commands() -> Iterable[specs.Command]:  # pyright: ignore[reportReturnType]
    """Subcommands of `sae-kernels`."""


@hookspec
def sae_kernels_train_start(run: Run) -> None:
    """Training is about to take its first step (or the first after a resume)."""


@hookspec
def sae_kernels_train_step(run: Run, step: int, metrics: dict[str, float]) -> None:
    """A step was logged: `metrics` as written to metrics.jsonl (loss, fvu, l0, …)."""


@hookspec
def sae_kernels_checkpoint(run: Run, step: int, path: Path) -> None:
    """A checkpoint is complete on disk at `path`."""


@hookspec
def sae_kernels_evaluation(run: Path, results: dict[str, Any]) -> None:
    """An evaluation of the run directory `run` finished."""


@hookspec
def sae_kernels_train_end(run: Run, reason: str) -> None:
    """Training stopped: `reason` is "finished", "interrupted" or "failed"."""
