"""`table`: an evaluation for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Line(NamedTuple):
    """How a figure is shown: label, format, which way is better, what it means."""

    label: str
    form: str
    better: str
    meaning: str


_METRICS = {
    "l0": _Line("L0", "{:.1f}", "lower", "latents active a token"),
    "fvu": _Line("FVU", "{:.4f}", "lower", "variance left unexplained: 0 perfect, 1 no better than the mean"),
    "explained_variance": _Line("explained variance", "{:.1%}", "higher", "1 - FVU"),
    "mse": _Line("MSE", "{:.4g}", "lower", "squared error a token and feature"),
    "cosine": _Line("cosine", "{:.4f}", "higher", "direction of the reconstruction: 1 right"),
    "relative_norm": _Line("relative norm", "{:.4f}", "near 1", "length of the reconstruction: below 1 too short"),
    "dead_fraction": _Line("dead latents", "{:.1%}", "lower", "never fired in {window} tokens"),
    "dense_fraction": _Line("dense latents", "{:.1%}", "lower", "fired on over 10 % of the tokens"),
}
_LANGUAGE = {
    "ce_orig": _Line("CE, model as it is", "{:.4f}", "", "nats a token"),
    "ce_sae": _Line("CE, reconstruction", "{:.4f}", "lower", "with the coder's output in its place"),
    "ce_ablated": _Line("CE, ablated", "{:.4f}", "", "with {ablation} in its place"),
    "ce_recovered": _Line("CE recovered", "{:.1%}", "higher", "100 % as good as the model, 0 % as the ablation"),
    "kl_sae": _Line("KL, reconstruction", "{:.4f}", "lower", "nats a token, from the model as it is"),
    "kl_ablated": _Line("KL, ablated", "{:.4f}", "", ""),
    "kl_recovered": _Line("KL recovered", "{:.1%}", "higher", "the same in terms of KL"),
}
_KIND = {"heldout": "held-out tokens", "": "tokens"}
_ELSEWHERE = {"dead_window_tokens", "density_histogram"}  # said beside other figures


def table(results: Mapping[str, Any]) -> str:
    """What `evaluate` found, with what each figure means and which way is better."""
    metrics = results.get("metrics", {})
    words = {"window": f"{metrics.get('dead_window_tokens') or 0:,}"}
    lines = [_headline(results), ""]
    lines += _section(metrics, _METRICS, words, results.get("intervals", {}))
    lines += [  # a plugin's figures
        f"  {key:<20} {value:>10.5g}"
        for key, value in metrics.items()
        if key not in _METRICS and key not in _ELSEWHERE and isinstance(value, (int, float))
    ]
    if histogram := metrics.get("density_histogram"):
        lines += _histogram(histogram)
    if model := results.get("language_model"):
        ablation = {"zero": "zeros", "mean": "the mean activation"}[model["ablation"]]
        lines += [
            "",
            f"language model, on {model['predicted_tokens']:,} predicted tokens, at {_points(model)}",
        ]
        lines += _section(model, _LANGUAGE, {"ablation": ablation}, model.get("intervals", {}))
    if bootstrap := results.get("bootstrap"):
        share, unit = bootstrap["confidence"], bootstrap["unit"]
        lines += ["", f"in brackets: where {share:.0%} of {bootstrap['samples']:,} resamples of the {unit} lie"]
    lines += [f"  {name}: failed, {error}" for name, error in results.get("failed", {}).items()]
    return "\n".join(lines)


def _headline(results: Mapping[str, Any]) -> str:
    split = results.get("data", {}).get("split", "")
    kind = _KIND.get(split, "tokens, not held out from training")
    name, latents = results.get("architecture", "coder"), results.get("coder", {}).get("d_sae", 0)
    return f"{name}, {latents:,} latents, on {results['tokens']:,} {kind}"


def _section(
    figures: Mapping[str, Any], lines: Mapping[str, _Line], words: Mapping[str, str], intervals: Mapping[str, Any]
) -> list[str]:
    shown = []
    for key, line in lines.items():
        if key in figures:
            value = "undefined" if figures[key] is None else line.form.format(figures[key])
            meaning = line.meaning.format(**words)
            between = _between(line, intervals.get(key)) if intervals else ""
            shown.append(f"  {line.label:<20} {value:>10}  {between}{line.better:<7} {meaning}".rstrip())
    return shown


def _between(line: _Line, interval: Any) -> str:
    """An interval in a column of its own."""
    if interval is None or None in interval:
        return " " * 20
    return "[{} … {}]".format(*(line.form.format(end) for end in interval)).ljust(20)


def _histogram(histogram: Mapping[str, Any]) -> list[str]:
    """One row of bars, from the rarest bin that holds a latent to the most frequent."""
    counts, edges = histogram["counts"], histogram["log10_edges"]
    filled = [j for j, count in enumerate(counts) if count]
    if not filled:
        return []
    first, last = filled[0], filled[-1]
    top = max(counts)
    bars = "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top)] for count in counts[first : last + 1])
    low, high = (f"{100 * 10**edge:.3g} %" for edge in (edges[first], edges[last + 1]))
    return [f"  {'firing densities':<20} {bars:>10}          latents that fire on {low} … {high} of the tokens"]


def _points(model: Mapping[str, Any]) -> str:
    read, written = (
        points if isinstance(points, str) else ", ".join(points) for points in (model["hook_in"], model["hook_out"])
    )
    return read if read == written else f"{read} → {written}"
