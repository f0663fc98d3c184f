"""How a run begins: in a fresh directory, or where an earlier one stopped."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..adapters import ActivationSource
from ..architectures import SparseCoder
from ..errors import ConfigError
from ..files import atomic_file
from . import checkpoint as checkpoints
from . import random_state, tensorboard
from .adam_rows import AdamRows
from .batches import Batches, Position
from .checkpoint import Checkpoint
from .config import Config
from .normalize import Estimate, Normalization
from .random_state import Own
from .run import Run

CONFIG, CODER = "config.json", "coder"


def check_machine(config: Config) -> None:
    """Raise ConfigError for what this machine or installation lacks."""
    device = torch.device(config.training.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"[training] device = {config.training.device!r}, but torch finds no CUDA device here")
    if config.training.tensorboard:
        tensorboard.require()


def claim(directory: Path) -> None:
    """Make the directory, and see that it can be written.

    Raises:
        CheckpointError: it can't; before anything is loaded.
    """
    with checkpoints.reported(directory, directory / "checkpoints"):
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("a"):
            pass


def earlier(config: Config, directory: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; None for a run that begins.

    Raises:
        ConfigError: there is a run that `config` would not continue.
        CheckpointError: every checkpoint is damaged, or the directory can't be written.
    """
    root = directory / "checkpoints"
    with checkpoints.reported(directory, root):
        for folder in (directory, root):
            checkpoints.sweep(folder)
    begun = bool(checkpoints.found(root))
    if not begun and (directory / CODER).exists() and (resume or not (directory / CONFIG).exists()):
        raise ConfigError(f"{directory} holds a coder, and no checkpoint to go on from; take another [output] dir")
    if not begun or not resume:
        return None
    _check_same(config, directory / CONFIG)
    saved = checkpoints.newest(root)
    steps = config.training.total_steps
    if saved is not None and saved.step > steps:
        raise ConfigError(f"[training] asks for {steps} steps, the run in {directory} has made {saved.step}")
    return saved


def take_over(config: Config, directory: Path, saved: Checkpoint | None) -> None:
    """Remove what an earlier run wrote, unless it goes on, and write config.json."""
    root = directory / "checkpoints"
    with checkpoints.reported(directory / CONFIG, root):
        if saved is None:  # the coder first: checkpoints without it can still be gone on from
            for name in (CODER, root.name, "metrics.jsonl", "run.json", "tensorboard"):
                checkpoints.remove(directory / name)
        with atomic_file(directory / CONFIG) as path:
            path.write_text(json.dumps(config.resolved(), indent=2, default=str) + "\n", encoding="utf-8")


def normalization_of(config: Config, source: ActivationSource) -> Estimate | None:
    """What is to be estimated before a new run begins."""
    training = config.training
    if training.normalize == "none":
        return None
    n_layers = config.coder.fields.get("n_layers", 1)
    for name in ("d_in", "d_out"):
        if getattr(source, name) % n_layers:
            raise ConfigError(
                f"[coder] n_layers = {n_layers}, the activations have {name} = {getattr(source, name)}: "
                "expected as many features of each layer"
            )
    return Estimate(source, training.normalize, training.normalize_tokens, n_layers)


def begin(config: Config, source: ActivationSource, normalize: Normalization | None, random: Own) -> Run:
    """A new run; what the coder takes from data, it takes from the first batch."""
    training = config.training
    coder = config.coder.create(source).to(training.device, getattr(torch, training.dtype))
    run = _run(config, source, coder, None, normalize, random)
    x, target = on_device(run, *run.batches.next())
    coder.initialise(x, target)
    run.batches.position = Position()
    return run


def go_on(config: Config, source: ActivationSource, saved: Checkpoint, random: Own) -> Run:
    """The run as it was when `saved` was written."""
    for name in ("d_in", "d_out"):
        if getattr(saved.coder, name) != getattr(source, name):
            raise ConfigError(
                f"[activations] the source has {name} = {getattr(source, name)}, "
                f"the run in {config.output.dir} was begun with {getattr(saved.coder, name)}"
            )
    run = _run(config, source, saved.coder.to(config.training.device), saved.position, saved.normalize, random)
    checkpoints.restore_optimizer(run.optimizer, run.coder, saved.optimizer)
    run.tokens_since_fired.copy_(saved.tokens_since_fired)
    run.step, run.tokens, run.resumed_from = saved.step, saved.tokens, saved.step
    run.resampled = saved.resampled
    random_state.restore(saved.random)
    return run


def on_device(run: Run, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch where the coder is, normalised, in its dtype."""
    device, dtype = run.config.training.device, getattr(torch, run.config.training.dtype)
    moved = x.to(device)
    there = moved if target is x else target.to(device)
    if run.normalize is not None:
        return run.normalize.apply(moved, there, dtype)
    return (moved := moved.to(dtype)), moved if target is x else there.to(dtype)


def _run(
    config: Config,
    source: ActivationSource,
    coder: SparseCoder,
    position: Position | None,
    normalize: Normalization | None,
    random: Own,
) -> Run:
    training = config.training
    counters = torch.zeros(coder.d_sae, dtype=torch.int64, device=training.device)
    batches = Batches(source, training.batch_size, position)
    return Run(
        config,
        config.output.dir,
        source,
        coder.train(),
        _optimizer(config, coder),
        batches,
        counters,
        normalize,
        random,
    )


def _optimizer(config: Config, coder: SparseCoder) -> torch.optim.Optimizer:
    training = config.training
    options = {"lr": 0.0, "betas": training.betas, "eps": training.eps}
    if training.optimizer == "adam":
        return torch.optim.Adam(coder.parameters(), **options, fused=True)
    coder.unit_norm_in_optimizer = True
    return AdamRows(
        coder.parameters(), **options, unit_norm=[coder.get_parameter(name) for name in coder.unit_norm_rows]
    )


def _check_same(config: Config, path: Path) -> None:
    try:
        before = Config.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the configuration of the run in this folder cannot be read: {error}") from error
    if differences := before.differences(config):
        lines = "\n".join(f"  {line}" for line in differences)
        raise ConfigError(
            f"{path.parent} holds a run with another configuration; take another [output] dir, or:\n{lines}"
        )
