"""`sae-kernels evaluate DIR…`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("directory", type=Path, nargs="+", help="directories that `sae-kernels train` wrote")
    parser.add_argument("--tokens", type=int, default=100_000, help="held-out tokens to read (default: 100000)")
    parser.add_argument("--ablation", choices=("zero", "mean"), default="zero", help="what CE recovered compares with")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, help="resamples behind the intervals (default: 1000; 0: none)"
    )
    parser.add_argument("--plots", action="store_true", help="draw PNG and SVG into DIR/plots (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = "example:\n  sae-kernels evaluate runs/topk --tokens 50000\n  sae-kernels evaluate runs/* --plots"


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, say where the JSON lies."""
    from ..evaluate import evaluate_run, plots, table

    if args.plots:
        plots.require()
    named: dict[str, dict[str, Any]] = {}
    for directory in args.directory:
        results = evaluate_run(
            directory,
            max_tokens=args.tokens,
            ablation=args.ablation,
            bootstrap=args.bootstrap,
            progress=not args.quiet,
        )
        named[str(directory)] = results
        if len(args.directory) > 1:
            print(f"\n{directory}")
        print(table(results))
        print(f"written to {directory / 'evaluation.json'}")
        if args.plots:
            print(f"drawn: {', '.join(str(path) for path in plots.draw(directory, results))}")
    if len(named) > 1:
        print(f"\n{comparison(named)}")
        if args.plots:
            drawn = plots.draw_frontier(args.directory[0], named)
            print(f"drawn: {', '.join(str(path) for path in drawn)}")


def comparison(named: dict[str, dict[str, Any]]) -> str:
    """One line a run: the figures by which coders are compared, at the L0 they have."""
    width = max(len("run"), *map(len, named))
    lines = [f"{'run':<{width}} {'latents':>9} {'L0':>8} {'FVU':>8} {'cosine':>8} {'dead':>7} {'CE recovered':>13}"]
    for name, results in named.items():
        metrics, model = results["metrics"], results.get("language_model", {})
        cells = (
            f"{results['coder'].get('d_sae', 0):>9,}",
            _cell(metrics.get("l0"), "{:.1f}", 8),
            _cell(metrics.get("fvu"), "{:.4f}", 8),
            _cell(metrics.get("cosine"), "{:.4f}", 8),
            _cell(metrics.get("dead_fraction"), "{:.1%}", 7),
            _cell(model.get("ce_recovered"), "{:.1%}", 13),
        )
        lines.append(f"{name:<{width}} {' '.join(cells)}")
    return "\n".join(lines)


def _cell(value: float | None, form: str, width: int) -> str:
    return ("–" if value is None else form.format(value)).rjust(width)
