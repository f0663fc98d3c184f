"""`python bench/gpu/run.py --case A`: every comparison of one size, within a time limit; call it again to go on.

Exit codes: 0, done; 1, done, and a contender failed; 75, the time is up, there is more to do.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(ROOT))  # for `bench`; behind an installed package, which is the one to time

import torch  # noqa: E402

import sae_kernels as sk  # noqa: E402
from bench.gpu import decoding, encoding, stepping  # noqa: E402
from bench.gpu.problem import CASES, DRAWS, DRY, DTYPES, Problem  # noqa: E402
from bench.gpu.race import Comparison  # noqa: E402
from bench.gpu.results import Results, machine  # noqa: E402
from bench.gpu.roofline import Roofline, measured  # noqa: E402
from bench.gpu.timing import Clock, told  # noqa: E402

MORE_TO_DO = 75
GROUPS: dict[str, Callable[[Problem], Iterator[Comparison]]] = {
    "encode": encoding.encode,
    "decode": decoding.forward,
    "backward": decoding.backward,
    "step": stepping.step,
    "topk": encoding.topk,
    "determinism": decoding.determinism,
}
SAME_FOR_ALL_DRAWS = ("topk",)
LAST_SECONDS = 60.0  # nothing is begun with less time left


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where results are written")
    parser.add_argument("--found", type=Path, help="where earlier calls' results lie too, to go on from")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--draws", nargs="+", choices=DRAWS, default=list(DRAWS))
    parser.add_argument("--seconds", type=float, default=500, help="end before that many have passed")
    parser.add_argument("--each", type=float, default=3, help="seconds of rounds for one comparison")
    parser.add_argument("--again", action="store_true", help="measure what there are results of already")
    parser.add_argument("--no-flush", action="store_true", help="leave the L2 cache as the call before left it")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    return parser.parse_args()


def problems(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Problem]]:
    """Group by group of each dtype and distribution of latents; a dry run pairs them off."""
    size = (DRY if args.dry_run else CASES)[args.case]
    for i, dtype in enumerate(args.dtypes):
        for draw in args.draws if not args.dry_run else args.draws[i % 2 :][:1]:
            problem = Problem(size, DTYPES[dtype], draw, device, args.dry_run)
            for group in args.groups:
                if args.dry_run or draw == args.draws[0] or group not in SAME_FOR_ALL_DRAWS:
                    yield group, problem


def race(args: argparse.Namespace, results: Results, clock: Clock, roofline: Roofline, began: float) -> bool:
    """Run what is left; False: the time was up before that."""
    done, dtype_names = results.done, {dtype: name for name, dtype in DTYPES.items()}
    for group, problem in problems(args, clock.device):
        for comparison in GROUPS[group](problem):
            labels = {"dtype": dtype_names[problem.dtype], "draw": problem.draw}
            if (comparison.group, comparison.name, *labels.values()) in done:
                continue
            left = args.seconds - (time.monotonic() - began)
            if left < LAST_SECONDS and not args.dry_run:
                return False
            start = time.monotonic()
            seconds = 0.02 if args.dry_run else min(args.each, left / 4)
            row = comparison.run(clock, roofline, problem.dtype, seconds)
            results.data["comparisons"].append({**labels, **row})
            results.write()
            print(f"{time.monotonic() - began:6.1f} s  {comparison.name} {labels}: {time.monotonic() - start:.1f} s")
            sys.stdout.flush()
        torch.compiler.reset()
        gc.collect()
        if clock.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def chosen(args: argparse.Namespace, device: torch.device) -> str:
    """The backends that sae_kernels takes for encode and decode when it is left to choose."""
    size = DRY[args.case]
    problem = Problem(size, DTYPES[args.dtypes[0]], "uniform", device, True)
    told_of = {
        "encode": sk.explain("encode", problem.x, problem.W_enc, problem.b_enc, sk.TopK(size.k)).chosen,
        "decode": sk.explain("decode", problem.codes, problem.W_dec).chosen,
    }
    return ", ".join(f"{op} {backend}" for op, backend in told_of.items())


def main() -> int:
    """See the top of this file."""
    began, args = time.monotonic(), arguments()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("no CUDA device: --dry-run goes through the same code on the CPU")
    device = torch.device("cpu" if args.dry_run else "cuda")
    torch.set_num_threads(1 if args.dry_run else torch.get_num_threads())
    places = {args.out, ROOT / "bench" / "results", *([args.found] if args.found else [])}
    results = Results(f"bench-{args.case}", device, args.out, places, args.again)
    if results.complete:
        print("complete already; --again measures anew")
        return 0
    clock = Clock(device, flush=not args.no_flush)
    roofline = measured(clock, args.dry_run)
    print(roofline)
    results.data.update(
        machine=machine(device),
        size=str((DRY if args.dry_run else CASES)[args.case]),
        flush=not args.no_flush,
        roofline=roofline.to_dict(),
        roofline_told=f"roofline: {roofline}",
        chosen=chosen(args, device),
    )
    results.data["complete"] = race(args, results, clock, roofline, began)
    results.write()
    print(f"written: {results.path}")
    for line in results.failures():
        print(f"failed: {line}")
    if not results.complete:
        print("the time is up: call again to go on")
        return MORE_TO_DO
    return 1 if results.failures() else 0


if __name__ == "__main__":
    try:
        code = main()
    except torch.cuda.OutOfMemoryError as error:
        sys.exit(told(error))
    sys.exit(code)
