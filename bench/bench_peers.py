"""SAELens, sparsify, dictionary_learning, circuit-tracer, plain and patched, side by side; our trainer beside theirs.

    python bench/bench_peers.py --size S --save S.json --chart S
    python bench/bench_peers.py --draw S.json --chart S

Contenders run in turn within one round, each after a call of its own that is not timed, and share their weights; a
figure is the median of the rounds. Their results are compared first. A row is written as soon as it is there: called
again with the same `--save`, the rest is done. Libraries that are not installed are left out. `make peers` installs all
of them into `.venv-peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)  # for `bench`; behind an installed package, which is the one to time

from bench import cases  # noqa: E402
from bench.peers import chart, circuit_tracer, dictionary_learning, ours, sae_lens, sparsify  # noqa: E402
from bench.peers.host import Call, Host  # noqa: E402
from bench.peers.problem import DTYPES, Problem  # noqa: E402
from bench.peers.race import Race  # noqa: E402
from bench.peers.table import HEAD, head, line  # noqa: E402
from sae_kernels.files import atomic_file  # noqa: E402
from sae_kernels.kernels import _cpu  # noqa: E402

HOSTS: tuple[Host, ...] = (
    sae_lens.TopK(),
    sae_lens.BatchTopK(),
    sae_lens.JumpReLU(),
    sae_lens.Standard(),
    sae_lens.StandardFresh(),
    sae_lens.Gated(),
    sparsify.TopK(),
    dictionary_learning.TopK(),
    circuit_tracer.Transcoder(),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = "; ".join(f"{name}: {size}" for name, size in cases.SIZES.items())
    parser.add_argument("--size", choices=list(cases.SIZES), default="small", help=sizes)
    parser.add_argument("--tokens", type=int, help="another number of tokens than the size has")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each operation (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: as torch has it")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only what has each of these words in its library, operation or dtype: --only sparsify step",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the call that measures peak memory")
    parser.add_argument("--save", type=Path, metavar="JSON", help="write results here, and go on with what is there")
    parser.add_argument("--chart", type=Path, metavar="STEM", help="draw STEM.png and STEM.svg")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: table and chart of these results")
    return parser.parse_args()


def wanted(words: list[str]) -> Callable[[str, str, str], bool]:
    """Whether a row has each of the words."""

    def has(*labels: str) -> bool:
        return all(any(word.lower() in label.lower() for label in labels) for word in words)

    return has


def about(args: argparse.Namespace, hosts: list[Host]) -> dict[str, Any]:
    """What the figures depend on."""
    size = cases.SIZES[args.size]
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_name(),
        "isa": _cpu.isa() or "none",
        "threads": args.threads,
        "size": args.size + (f" with N {args.tokens}" if args.tokens else "") + f" ({size})",
        "rounds": args.rounds,
        "versions": {
            "sae_kernels": importlib.metadata.version("sae-kernels"),
            "torch": torch.__version__,
            **{host.distribution: host.version for host in hosts},
        },
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for entry in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if entry.startswith("model name"):
                return entry.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed() -> Iterator[Host]:
    """The libraries that are there; says which are not."""
    for host in HOSTS:
        try:
            _ = host.version
        except importlib.metadata.PackageNotFoundError:
            print(f"{host.name}: {host.distribution} is not installed")
            continue
        yield host


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rows; those that `--save` has already are not measured again."""
    torch.set_num_threads(args.threads)
    hosts = list(installed())
    data: dict[str, Any] = {"about": about(args, hosts), "rows": []}
    if args.save and args.save.exists():
        data = _continued(args.save, data)
    print(head(data), HEAD, *map(line, data["rows"]), sep="\n", flush=True)
    asked = wanted(args.only)
    done = {(row["host"], row["operation"], row["dtype"]) for row in data["rows"]}
    race = Race(args.rounds, lambda *labels: asked(*labels) and labels not in done, not args.no_memory)
    for dtype in args.dtypes:
        problem = Problem.of(cases.SIZES[args.size], DTYPES[dtype], args.tokens)
        with tempfile.TemporaryDirectory() as folder, _own_trainer(Path(folder)) as our_step:
            for host in hosts:
                for row in race.rows(host, problem, our_step):
                    data["rows"].append(row)
                    print(line(row), flush=True)
                    if args.save:
                        with atomic_file(args.save) as path:
                            path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
                gc.collect()
    return data


@contextlib.contextmanager
def _own_trainer(folder: Path) -> Iterator[Callable[[Problem], Call]]:
    """A step of our trainer, which is made when the first library's step is timed and kept for the others'."""
    made: list[ours.Trainer] = []

    def step(problem: Problem) -> Call:
        if not made:
            made.append(ours.Trainer(problem, folder))
        return made[0].step

    yield step
    made.clear()


def _continued(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Results begun earlier, if they are of the same things."""
    begun = json.loads(path.read_text(encoding="utf-8"))
    before, now = ({key: each["about"][key] for key in each["about"] if key != "date"} for each in (begun, fresh))
    if before != now:
        sys.exit(f"{path} holds results of something else:\n  {before}\nexpected\n  {now}")
    return begun


def main() -> None:
    """See the top of this file."""
    args = arguments()
    if args.draw:
        data = json.loads(args.draw.read_text(encoding="utf-8"))
        print(head(data), HEAD, *map(line, data["rows"]), sep="\n")
    else:
        data = measure(args)
    if args.chart:
        print(*chart.draw(data, args.chart), sep="\n")


if __name__ == "__main__":
    main()
