"""Pictures of training and evaluation, as PNG and SVG. Drawn by matplotlib, which is imported here alone.

Colours of data: Okabe and Ito's palette, which colour-blind readers tell apart.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import atomic_file

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
FORMATS = ("png", "svg")


def require() -> None:
    """Raise ArgumentError where matplotlib is missing: before anything long begins."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ArgumentError("plots need matplotlib: pip install 'sae-kernels[plots]'") from None


def draw(directory: Path, results: Mapping[str, Any]) -> list[Path]:
    """`training`, `density` and `language_model`, as far as there are data for them, into `directory`/plots; the files
    written. `results`: what `evaluate_run(directory)` returned."""
    written: list[Path] = []
    if lines := _logged(directory / "metrics.jsonl"):
        with _figure(directory, "training", written, (7.5, 2.6), 3) as axes:
            _training(axes, lines)
    if histogram := results.get("metrics", {}).get("density_histogram"):
        with _figure(directory, "density", written, (5.2, 2.8), 1) as axes:
            _density(axes[0], histogram, results)
    if model := results.get("language_model"):
        with _figure(directory, "language_model", written, (5.2, 2.4), 1) as axes:
            _losses(axes[0], model)
    return written


def draw_frontier(directory: Path, named: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """FVU over L0 of several evaluations, with intervals, into `directory`/plots/frontier."""
    written: list[Path] = []
    with _figure(directory, "frontier", written, (7.2, 3.6), 1) as axes:
        axis = axes[0]
        for number, (name, results) in enumerate(named.items()):
            metrics, intervals = results["metrics"], results.get("intervals", {})
            if metrics.get("l0") is None or metrics.get("fvu") is None:
                continue
            axis.errorbar(
                metrics["l0"],
                metrics["fvu"],
                xerr=_reach(metrics["l0"], intervals.get("l0")),
                yerr=_reach(metrics["fvu"], intervals.get("fvu")),
                fmt=MARKERS[number // len(CYCLE) % len(MARKERS)],
                color=CYCLE[number % len(CYCLE)],
                capsize=2,
                markersize=4,
                linewidth=1,
                label=Path(name).name,
            )
        axis.set(xlabel="L0 (latents active a token)", ylabel="FVU", title="Reconstruction against sparsity")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    return written


def _training(axes: Sequence[Any], lines: Sequence[Mapping[str, Any]]) -> None:
    tokens = [line["tokens"] for line in lines]
    for axis, (key, label) in zip(axes, (("fvu", "FVU"), ("l0", "L0"), ("dead", "dead latents")), strict=True):
        axis.plot(tokens, [_number(line.get(key)) for line in lines], color=BLUE, linewidth=1.2)
        axis.set(xlabel="tokens", title=label)
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))


def _density(axis: Any, histogram: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    edges, counts = histogram["log10_edges"], histogram["counts"]
    axis.bar(edges[:-1], counts, width=[b - a for a, b in itertools.pairwise(edges)], align="edge", color=BLUE)
    axis.set(xlabel="log10 of firings / tokens", ylabel="latents")
    metrics = results["metrics"]
    silent = f"{metrics['dead_fraction']:.1%} never fired in {metrics['dead_window_tokens']:,} tokens"
    axis.set_title(f"How often latents fire; {silent}")
    filled = [j for j, count in enumerate(counts) if count]
    if filled:
        axis.set_xlim(edges[filled[0]] - 0.5, edges[filled[-1] + 1] + 0.5)


def _losses(axis: Any, model: Mapping[str, Any]) -> None:
    rows = (
        (f"ablated ({model['ablation']})", "ce_ablated", GREY),
        ("reconstruction", "ce_sae", ORANGE),
        ("model as it is", "ce_orig", BLUE),
    )
    intervals = model.get("intervals", {})
    for place, (_, key, colour) in enumerate(rows):
        if model.get(key) is None:
            continue
        axis.barh(place, model[key], xerr=_reach(model[key], intervals.get(key)), color=colour, capsize=2)
        axis.annotate(
            f"{model[key]:.3f}",
            (model[key], place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows])
    recovered = model.get("ce_recovered")
    share = "undefined" if recovered is None else f"{recovered:.1%}"
    axis.set(xlabel="cross-entropy, nats a token", title=f"CE recovered: {share}")
    axis.margins(x=0.18)


def _reach(value: float, interval: Any) -> Any:
    """matplotlib's error bars: distances below and above, none where there is no interval."""
    if interval is None or None in interval:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


@contextlib.contextmanager
def _figure(
    directory: Path, name: str, written: list[Path], size: tuple[float, float], columns: int
) -> Iterator[Sequence[Any]]:
    """Axes to draw on; then plots/<name>.png and .svg, each complete or not at all. No global state of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(1, columns, squeeze=False)[0]
        folder = directory / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        for form in FORMATS:
            path = folder / f"{name}.{form}"
            with atomic_file(path) as temporary:
                metadata = {"Date": None} if form == "svg" else None
                figure.savefig(temporary, format=form, dpi=160, metadata=metadata)
            written.append(path)


def _logged(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file, and not the one a kill cut short."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
