"""`evaluate`: one pass over a source, all metrics at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..adapters import ActivationBatch, ActivationSource, LanguageSource
from ..architectures import SparseCoder
from ..errors import ArgumentError, PluginError
from ..specs import resolve
from .batch import EvalBatch, MetricInstance
from .bootstrap import CLUSTERS, RUN, Resamples
from .moments import Moments
from .recovered import ce_recovered, check_ablation
from .stream import check_count, check_widths, inference, to_coder, token_batches


def evaluate(
    coder: SparseCoder,
    source: ActivationSource,
    *,
    max_tokens: int | None = 100_000,
    batch_tokens: int = 4096,
    metrics: Iterable[str] | None = None,
    ablation: str = "zero",
    loss_tokens: int | None = None,
    bootstrap: int = 1000,
    progress: bool = False,
) -> dict[str, Any]:
    """How good a coder is on a source's first `max_tokens` tokens (None: all), as a dict that JSON holds.

    `metrics`: names of registered metrics (None: all). Of all, one that raises is left out, with a warning
    and its error under "failed"; one asked for by name raises. A figure that is undefined is None. Where the
    source reads a language model, "language_model" holds `ce_recovered` on about `loss_tokens` of its text
    (None: as many as `max_tokens`), against `ablation`: "zero" or "mean", the mean target of the tokens
    evaluated. "intervals" are of 95 % confidence, by `bootstrap` resamples of the source's sequences (0: none; see
    `bootstrap`). `progress` shows bars on stderr.

    Raises:
        ShapeError: the source's widths are not the coder's.
        ArgumentError: a count below 1, an unknown ablation, no `max_tokens` for a source that never ends.
        UnknownNameError: no metric of that name. PluginError: two metrics give one figure.
        AdapterError: no tokens.
    """
    check_widths(coder, source)
    check_ablation(ablation)
    check_count(loss_tokens=loss_tokens)
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 0:
        raise ArgumentError(f"bootstrap = {bootstrap!r}, expected a number of resamples >= 0")
    panel = _Panel(metrics)
    targets = Moments() if ablation == "mean" else None
    tokens = 0
    sequences = True
    present = torch.zeros(CLUSTERS, dtype=torch.bool)
    with inference(coder):
        for batch in token_batches(source, max_tokens, batch_tokens, progress, "metrics"):
            sequences = sequences and batch.sequence is not None
            cluster = _cluster(batch, tokens)
            present[cluster] = True
            coded = encoded(coder, batch, cluster)
            panel.update(coded)
            if targets is not None:
                targets.update(coded.target64)
            tokens += len(coded)
        resamples = Resamples(present, bootstrap)
        results: dict[str, Any] = {
            "architecture": coder.architecture,
            "coder": coder.config.to_dict(),
            "tokens": tokens,
            "metrics": panel.result(),
        }
        if intervals := panel.intervals(resamples):
            unit = "sequences" if sequences else f"runs of {RUN} tokens"
            results |= {"intervals": intervals, "bootstrap": resamples.describe(unit)}
        if isinstance(source, LanguageSource):
            results["language_model"] = ce_recovered(
                coder,
                source,
                max_tokens=loss_tokens if loss_tokens is not None else max_tokens,
                ablation=ablation,
                mean=None if targets is None else targets.mean,
                bootstrap=bootstrap,
                progress=progress,
            )
    if panel.failed:
        results["failed"] = panel.failed
    return jsonable(results)


def encoded(coder: SparseCoder, batch: ActivationBatch, cluster: Tensor | None = None) -> EvalBatch:
    """A batch of activations with its codes and reconstruction."""
    x = to_coder(coder, batch.input)
    codes = coder.encode(x)
    return EvalBatch(batch.input, batch.target, codes, coder.reconstruct(codes, x), cluster)


def _cluster(batch: ActivationBatch, tokens: int) -> Tensor:
    """What each token is drawn together with: its sequence, or its run of tokens, `tokens` being those before."""
    if batch.sequence is not None:
        return batch.sequence.cpu() % CLUSTERS
    return torch.arange(tokens, tokens + len(batch)) // RUN % CLUSTERS


class _Panel:
    """The metrics of one evaluation. Strangers' metrics are isolated unless they were asked for by name."""

    def __init__(self, names: Iterable[str] | None) -> None:
        self.strict = names is not None
        self.failed: dict[str, str] = {}
        self.metrics: dict[str, MetricInstance] = {}
        specs = registry.metrics.all() if names is None else [registry.metrics.get(name) for name in names]
        for spec in specs:
            try:
                self.metrics[spec.name] = resolve(spec.make)()
            except Exception as error:
                self._fail(spec.name, error)

    def update(self, batch: EvalBatch) -> None:
        for name, metric in list(self.metrics.items()):
            try:
                metric.update(batch)
            except Exception as error:
                self._fail(name, error)

    def result(self) -> dict[str, Any]:
        """All figures in one table."""
        figures: dict[str, Any] = {}
        giver: dict[str, str] = {}
        for name, metric in list(self.metrics.items()):
            try:
                found = dict(metric.result())
                for key, value in found.items():
                    jsonable(value)
                    if key in giver:
                        raise PluginError(f"metrics {giver[key]!r} and {name!r} both give a figure {key!r}")
            except Exception as error:
                self._fail(name, error)
                continue
            figures |= found
            giver |= dict.fromkeys(found, name)
        return figures

    def intervals(self, resamples: Resamples) -> dict[str, Any]:
        """Confidence intervals of the figures whose metrics have them."""
        found: dict[str, Any] = {}
        for name, metric in list(self.metrics.items()):
            try:
                found |= getattr(metric, "intervals", _none)(resamples)
            except Exception as error:
                self._fail(name, error)
        return found

    def _fail(self, name: str, error: Exception) -> None:
        if self.strict:
            raise error
        self.failed[name] = f"{type(error).__name__}: {error}"
        self.metrics.pop(name, None)
        warnings.warn(f"metric {name!r} is left out: {self.failed[name]}", RuntimeWarning, stacklevel=4)


def _none(_: Resamples) -> dict[str, Any]:
    return {}


def jsonable(value: Any) -> Any:
    """The same with plain keys and lists, and None for numbers that JSON does not know (NaN, ±inf)."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"{value!r} is a {type(value).__name__}, expected plain numbers, lists and tables")
    return value
