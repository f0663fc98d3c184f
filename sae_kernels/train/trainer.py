"""`train`: from a configuration to a trained coder, resumable at any moment."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator, Sequence

import torch

from .. import formats
from ..adapters import ActivationSource
from ..errors import ConfigError, TrainingError
from ..files import atomic_file
from ..plugins import plugins
from . import checkpoint as checkpoints
from . import random_state, start
from .checkpoint import Checkpoint
from .config import Config
from .denormals import flushed
from .lock import locked
from .lockstep import lockstep
from .log import MetricsLog
from .normalize import estimate
from .progress import Progress
from .random_state import Own
from .resample import resample_if_due
from .run import Run
from .step import learning_rate, measure, require_finite_weights, take_step
from .stopping import Stop, stop_on_signal
from .sweep import open_sources


def train(config: Config, *, resume: bool = True, progress: bool = True) -> Run:
    """Train what `config` says, in its `[output] dir`.

    An unfinished run there is continued exactly: after a kill at any moment the final weights, the
    optimiser's state and metrics.jsonl (but for timings) are bit for bit those of a run that was never
    interrupted, on the same machine and number of threads. Ctrl-C or SIGTERM: a checkpoint is written, and
    the returned run's `outcome` is "interrupted".

    Written: `config.json`, `metrics.jsonl`, `checkpoints/step_…`, at the end `coder/` (`sae_kernels.load`
    reads it) and `run.json` (`Run.summary()`). With `resume=False` an earlier run's files are removed, once
    the new one is ready to begin.

    Raises:
        ConfigError: senseless, or it would not continue the run that is there (names the keys).
        AdapterError, FormatError: the activations can't be read.
        TrainingError: loss or gradients are not finite (names the step and the last good checkpoint), or
            another process trains there.
        CheckpointError: something could not be written, or no checkpoint read.
    """
    (run,) = train_together([config], resume=resume, progress=progress)
    return run


def train_together(configs: Sequence[Config], *, resume: bool = True, progress: bool = True) -> list[Run]:
    """Train several, a step of each in turn, on blocks of activations that are read once: what `load_sweep` gives, or
    runs whose `[activations]` differ in hook points alone.

    Each run is what `train` makes of its configuration, bit for bit, and can go on alone. One whose loss or gradients
    are no longer finite ends there; the others go on. All coders and optimisers are in memory at once.

    Raises:
        As `train`; a TrainingError that ended runs comes after the others have finished.
    """
    if not configs:
        raise ConfigError("no configuration, expected at least one")
    begun = time.monotonic()
    for config in configs:
        start.check_machine(config)
        start.claim(config.output.dir)
    with contextlib.ExitStack() as held:
        for config in configs:
            held.enter_context(locked(config.output.dir))
        held.enter_context(_threads(_common_threads(configs)))
        held.enter_context(flushed(torch.get_num_threads()))
        saved = [start.earlier(config, config.output.dir, resume) for config in configs]
        runs = _begin(configs, open_sources(configs), saved)
        with stop_on_signal() as stop:
            lockstep([(run, _steps(run, stop, progress, begun, i)) for i, run in enumerate(runs)])
    return runs


def _begin(
    configs: Sequence[Config], sources: Sequence[ActivationSource], saved: Sequence[Checkpoint | None]
) -> list[Run]:
    """The runs, before their next step; what earlier ones left goes when all are ready to begin."""
    pairs = list(zip(configs, sources, saved, strict=True))
    jobs = {i: start.normalization_of(*pair[:2]) for i, pair in enumerate(pairs) if pair[2] is None}
    wanted = {i: job for i, job in jobs.items() if job is not None}
    found = dict(zip(wanted, estimate(list(wanted.values())), strict=True))
    runs = []
    for i, (config, source, earlier) in enumerate(pairs):
        with (random := Own(config.coder.seed)):
            if earlier is None:
                runs.append(start.begin(config, source, found.get(i), random))
            else:
                runs.append(start.go_on(config, source, earlier, random))
    for config, run, earlier in zip(configs, runs, saved, strict=True):
        start.take_over(config, run.directory, earlier)
    return runs


def _steps(run: Run, stop: Stop, progress: bool, begun: float, place: int = 0) -> Generator[None]:
    """The steps that are left, a step at a time, with their lines in metrics.jsonl and their checkpoints; at the end
    what a finished run leaves."""
    with _announced(run):
        yield from _train_steps(run, stop, progress, place)
        _finish(run, time.monotonic() - begun)


def _train_steps(run: Run, stop: Stop, progress: bool, place: int) -> Generator[None]:
    training = run.config.training
    with checkpoints.reported(run.log_path, run.checkpoints):
        log = MetricsLog(run.log_path, run.step)
    run.metrics = log.last
    bar = Progress(run, progress, place)
    with contextlib.closing(log), contextlib.closing(bar), _last_good(run):
        clock, tokens, written = time.monotonic(), run.tokens, run.step
        while run.step < run.total_steps and not stop.asked:
            x, target = start.on_device(run, *run.batches.next())
            lr = learning_rate(run)
            losses, norm = take_step(run, x, target)
            resample_if_due(run)
            if run.step % training.log_every == 0 or run.step == run.total_steps:
                run.metrics = measure(run, losses, norm, target, lr)
                now = time.monotonic()
                run.metrics["tokens_per_second"] = (run.tokens - tokens) / max(now - clock, 1e-9)
                clock, tokens = now, run.tokens
                with checkpoints.reported(run.log_path, run.checkpoints):
                    log.write(run.metrics)
                bar.show(run.metrics)
                plugins().notify("sae_kernels_train_step", run=run, step=run.step, metrics=run.metrics)
            bar.advance(len(x))
            if run.step % training.checkpoint_every == 0 or run.step == run.total_steps or stop.asked:
                _checkpoint(run, log)
                written = run.step
            yield
        if run.step > written:  # asked to stop while others made their step
            _checkpoint(run, log)


def _checkpoint(run: Run, log: MetricsLog) -> None:
    require_finite_weights(run)
    with checkpoints.reported(run.log_path, run.checkpoints):
        log.sync()
    path = checkpoints.write(
        Checkpoint(
            run.step,
            run.tokens,
            run.batches.position,
            run.coder,
            checkpoints.optimizer_tensors(run.optimizer, run.coder),
            run.tokens_since_fired,
            random_state.capture(),
            run.normalize,
            run.resampled,
        ),
        run.checkpoints,
        run.config.training.keep_checkpoints,
    )
    plugins().notify("sae_kernels_checkpoint", run=run, step=run.step, path=path)


def _finish(run: Run, seconds: float) -> None:
    """The coder, if all steps were made, and the summary."""
    run.outcome = "finished" if run.step >= run.total_steps else "interrupted"
    run.seconds = seconds
    if run.outcome == "finished":
        coder = run.directory / start.CODER
        with checkpoints.reported(coder, run.checkpoints):
            formats.save(run.coder if run.normalize is None else run.normalize.folded(run.coder), coder)
    summary = run.directory / "run.json"
    with checkpoints.reported(summary, run.checkpoints), atomic_file(summary) as path:
        path.write_text(json.dumps(run.summary(), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _announced(run: Run) -> Iterator[None]:
    """Plugins hear of the start, and of the end however it comes; not of a run that was finished before."""
    if run.step >= run.total_steps:
        yield
        return
    plugins().notify("sae_kernels_train_start", run=run)
    try:
        yield
    except BaseException as error:
        run.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        raise
    finally:
        plugins().notify("sae_kernels_train_end", run=run, reason=run.outcome)


@contextlib.contextmanager
def _last_good(run: Run) -> Iterator[None]:
    """A TrainingError, with the step and where one can go back to."""
    try:
        yield
    except TrainingError as error:
        last = checkpoints.found(run.checkpoints)
        left = f"last good checkpoint: {last[-1]}" if last else "no checkpoint had been written yet"
        raise TrainingError(f"step {run.step + 1}: {error}; {left}") from error


def _common_threads(configs: Sequence[Config]) -> int | None:
    found = {config.training.threads for config in configs}
    if len(found) > 1:
        raise ConfigError(f"runs that are trained together have [training] threads of {found}, expected one number")
    return found.pop()


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
