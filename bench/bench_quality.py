"""FVU at equal L0 of every architecture, trained on the demo model for a fixed budget, beside other libraries.

    python bench/bench_quality.py runs/quality                  # train what is not there yet, then print the table
    python bench/bench_quality.py runs/quality --only relu,gated/sae_lens --lr 1e-3,3e-3
    python bench/bench_quality.py runs/quality --table          # the table alone

Every contender sees the same rows in the same order, the same shape of learning rate and the same count of dead
latents, and takes its steps as its own library does. The inputs have the scale that each documents: E‖x‖ = √d (this
package, SAELens, the papers), E‖x‖² = 1 (dictionary_learning), as they are (sparsify). Libraries that are not
installed are left out; what none of them trains stands beside a dense PyTorch implementation of its paper.

Each contender is trained with each of its sparsity settings, and others where L0 = 24 is not between them; FVU there is
read by a line in log L0, on held-out rows (`rows.Rows.test`). With several learning rates, further seeds take the one
that is best on the first, judged on other held-out rows (`validation`). `runs/quality/runs.jsonl` holds the runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MORE = 3  # runs beyond a contender's settings, at most
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)  # for `bench`; behind an installed package, which is the one to train

from bench.quality.budget import Budget, Job  # noqa: E402
from bench.quality.contenders import PAPER, Contender, contenders  # noqa: E402
from bench.quality.rows import rows_of  # noqa: E402
from bench.quality.runs import at_l0, best_lr, next_setting, train  # noqa: E402
from bench.quality.table import table  # noqa: E402


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where activations and runs are kept")
    parser.add_argument("--only", default="", help="rows of the table, or row/library, comma-separated")
    parser.add_argument("--lr", default="3e-3", help="comma-separated (default: 3e-3)")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (default: 1,2,3; on 0 defaults were chosen)")
    steps = Budget().steps
    parser.add_argument("--steps", type=int, default=steps, help=f"of every run (default: {steps}); a folder has one")
    parser.add_argument("--table", action="store_true", help="train nothing")
    return parser.parse_args()


def saved(file: Path, contender: Contender | None = None) -> list[dict[str, Any]]:
    """Runs that are there, of one contender or of all."""
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [
        run for run in runs if contender is None or (run["row"], run["library"]) == (contender.row, contender.library)
    ]


def complete(contender: Contender, args: argparse.Namespace, file: Path) -> None:
    """Train what is not there yet."""
    rows = rows_of(contender.points, args.folder)
    seeds, rates = [int(each) for each in args.seeds.split(",")], [float(each) for each in args.lr.split(",")]
    sizes = rows.train[0].shape[1], rows.train[1].shape[1], rows.n_layers
    for seed in seeds:
        for lr in rates if seed == seeds[0] else [best_lr(saved(file, contender))]:
            for setting in settings(contender, lr, seed, file):
                run = train(contender, Job(setting, lr, seed, *sizes, Budget(steps=args.steps)), rows)
                print(json.dumps(run), flush=True)
                with file.open("a") as out:
                    out.write(json.dumps(run) + "\n")


def settings(contender: Contender, lr: float, seed: int, file: Path) -> Iterator[float]:
    """Those of the contender that there are no runs of; then more, until FVU at `L0` can be read."""

    def runs() -> list[dict[str, Any]]:
        return [run for run in saved(file, contender) if (run["lr"], run["seed"]) == (lr, seed)]

    for setting in contender.settings:
        if all(run["setting"] != setting for run in runs()):
            yield setting
    for _ in range(MORE):
        found = next_setting(runs()) if math.isnan(at_l0(runs())) else None
        if found is None or any(run["setting"] == found for run in runs()):
            return
        yield found


def main() -> None:
    """See the module."""
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "runs.jsonl"
    others = {run.get("steps", Budget().steps) for run in saved(file)} - {args.steps}
    if others and not args.table:
        found = ", ".join(map(str, sorted(others)))
        sys.exit(f"{file}: runs of {found} steps, expected --steps {args.steps}; take another folder")
    only = {each for each in args.only.split(",") if each}
    everybody = [each for each in contenders() if not only or only & {each.row, each.name}]
    for contender in [] if args.table else everybody:
        if contender.library != PAPER and importlib.util.find_spec(contender.library) is None:
            print(f"{contender.name}: not installed")
            continue
        complete(contender, args, file)
    print(table(saved(file), [(each.row, each.library) for each in everybody]))


if __name__ == "__main__":
    main()
