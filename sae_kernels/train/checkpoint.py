"""Checkpoints: all that a run needs to go on as if it had never stopped, in folders that are complete or not
there.

checkpoints/step_00001000/
    coder/                    the native format: `sae_kernels.load` reads it
    optimizer.safetensors     Adam's state: `<parameter>/exp_avg`, …
    counters.safetensors      tokens_since_fired
    normalize.safetensors     with a normalisation: mean and scale of input and target
    state.json                step, tokens, latents resampled, position in the data, random states
    manifest.json             sizes and checksums of all of these
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import formats
from ..architectures import SparseCoder
from ..errors import CheckpointError, FormatError
from ..files import atomic_directory
from . import manifest
from .batches import Position
from .normalize import Normalization

VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")
_CODER, _OPTIMIZER, _COUNTERS, _STATE = "coder", "optimizer.safetensors", "counters.safetensors", "state.json"
_NORMALIZE = "normalize.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What is written, and read back. `optimizer` maps `<parameter>/<state>` to tensors."""

    step: int
    tokens: int
    position: Position
    coder: SparseCoder
    optimizer: dict[str, Tensor]
    tokens_since_fired: Tensor
    random: dict[str, Any]
    normalize: Normalization | None = None
    resampled: int = 0


def optimizer_tensors(optimizer: torch.optim.Optimizer, coder: SparseCoder) -> dict[str, Tensor]:
    """The optimiser's state by parameter name."""
    return {
        f"{name}/{key}": value.detach().contiguous()
        for name, parameter in coder.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, coder: SparseCoder, tensors: dict[str, Tensor]) -> None:
    """Set the state that `optimizer_tensors` returned."""
    parameters = dict(coder.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)


def write(checkpoint: Checkpoint, root: Path, keep: int) -> Path:
    """Write `root/step_…` in one step, then remove all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full, the folder read-only, …; names the path, the cause and the newest
        one left.
    """
    path = root / f"step_{checkpoint.step:08d}"
    with reported(path, root):
        with atomic_directory(path) as folder:
            formats.save(checkpoint.coder, folder / _CODER)
            save_file(checkpoint.optimizer, folder / _OPTIMIZER)
            save_file({"tokens_since_fired": checkpoint.tokens_since_fired.contiguous()}, folder / _COUNTERS)
            if checkpoint.normalize is not None:
                save_file(checkpoint.normalize.tensors(), folder / _NORMALIZE)
            state = {
                "version": VERSION,
                "step": checkpoint.step,
                "tokens": checkpoint.tokens,
                "resampled": checkpoint.resampled,
                "position": checkpoint.position._asdict(),
                "random": checkpoint.random,
            }
            (folder / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            manifest.write(folder)
        for old in found(root)[:-keep]:
            remove(old)
    return path


def newest(root: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None where there are none at all. Damaged newer ones are reported and
    set aside.

    Raises:
        CheckpointError: all are damaged, or a newer version wrote them.
    """
    bad: list[tuple[Path, str]] = []
    for path in reversed(found(root)):
        reason = manifest.damage(path)
        if reason is None:
            checkpoint = _read(path)
            for damaged, why in bad:
                aside = damaged.with_name(f"damaged_{damaged.name}")
                remove(aside)
                damaged.replace(aside)
                message = f"{damaged}: damaged ({why}); kept as {aside.name}, going on from {path.name}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)
            return checkpoint
        bad.append((path, reason))
    if bad:
        reasons = "\n".join(f"  {path}: {why}" for path, why in bad)
        raise CheckpointError(f"no checkpoint can be read; remove {root} to begin anew\n{reasons}")
    return None


def found(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def sweep(directory: Path) -> None:
    """Remove what a kill in the middle of writing left in a folder that nobody else writes to."""
    for pattern in (
        ".step_*",
        ".damaged_*",
        ".checkpoints.*",
        ".coder.*",
        ".tensorboard.*",
        ".config.json.*",
        ".run.json.*",
    ):
        for path in directory.glob(pattern):
            remove(path)


@contextlib.contextmanager
def reported(path: Path, root: Path) -> Iterator[None]:
    """Failures to write `path` as CheckpointError, with the newest checkpoint left under `root`."""
    try:
        yield
    except (OSError, SafetensorError, FormatError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        last = found(root)
        left = f"the last good checkpoint is {last[-1]}" if last else "there is no earlier checkpoint"
        raise CheckpointError(f"{path} could not be written: {cause}; {left}") from error


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if state["version"] != VERSION:
        raise CheckpointError(f"{path}: version {state['version']!r}, expected {VERSION}")
    normalize = path / _NORMALIZE
    return Checkpoint(
        state["step"],
        state["tokens"],
        Position(**state["position"]),
        formats.load(path / _CODER),
        load_file(path / _OPTIMIZER),
        load_file(path / _COUNTERS)["tokens_since_fired"],
        state["random"],
        Normalization.from_tensors(load_file(normalize)) if normalize.exists() else None,
        state.get("resampled", 0),
    )


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there. Renamed first, so that a kill leaves nothing half-removed."""
    if path.is_dir():
        doomed = path if path.name.startswith(".") else path.replace(path.with_name(f".{path.name}.old"))
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
