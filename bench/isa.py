"""Our kernels on older instruction sets, against a torch held to the same ones: `python bench/isa.py`, ten minutes.

Each column is a process of its own, in which SAE_KERNELS_ISA pins ours, no copies of weights are kept (`--keep` does),
and ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS hold torch back. What that does to torch's
products is measured and printed: MKL heeds its variable on Intel alone.

Figures are medians of interleaved rounds, each call after one of its own that is not timed, as in a loop; ratios within
a round's company: torch's time over ours. `--save` writes the tables to bench/results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import sae_kernels as sk  # noqa: E402
from bench import cases  # noqa: E402
from bench.bench_decode import bag  # noqa: E402
from bench.bench_training_step import steps  # noqa: E402
from bench.conftest import OURS, Contenders, check  # noqa: E402
from sae_kernels.kernels import _cpu  # noqa: E402
from sae_kernels.measure import interleaved  # noqa: E402

TORCH_HELD_TO = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
TITLES = {"avx2": "AVX2 pinned", "avx512": "AVX-512 + VNNI pinned"}
GOALS = {  # least torch / ours: AVX2, AVX-512
    "topk fp32 random": (4, 6),
    "topk fp32 ascending": (20, 60),
    "topk bf16 random": (5, 9),
    "encode fp32 S": (1.2, 1.4),
    "encode fp32 L": (1.1, 1.15),
    "encode fp32 XL": (1.2, 1.3),
    "decode forward S, embedding_bag": (1.0, 1.1),
    "decode forward + backward S, embedding_bag": (1.4, 1.7),
    "step fp32 S, plain torch": (5, 5.5),
    "step fp32 S, torch + embedding_bag": (2, 2.5),
}
PARTS = ("topk", "encode", "decode", "step")
Timed = Iterator[tuple[str, Contenders]]


def topk(size: cases.Size) -> Timed:
    """Of scores that are there already; the orders and values a selection could stumble over."""
    n, m = size.n // 2, size.d_sae
    ramp = torch.arange(m).float().expand(n, -1).contiguous()
    kinds: dict[str, Callable[[], Tensor]] = {
        "random": lambda: cases.scores("normal", n, m),
        "ascending": lambda: ramp,
        "constant": lambda: cases.scores("equal", n, m),
        "two-valued": lambda: cases.integers(n, m, low=0, high=1),
        "a third NaN and inf": lambda: cases.scores("nan_inf", n, m),
    }
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for kind, make in kinds.items():
            scores = make().to(dtype)

            def ours(scores: Tensor = scores) -> Tensor:
                return sk.topk(scores, size.k)[0]

            def plain(scores: Tensor = scores) -> Tensor:
                return torch.topk(scores, size.k, sorted=False)[0]

            if not torch.equal(ours().sort().values.nan_to_num(), plain().sort().values.nan_to_num()):
                raise RuntimeError(f"topk of {kind} scores: other values than torch's")
            contenders: Contenders = {OURS: ours, "torch": plain}
            if kind == "random":
                contenders["reading alone"] = partial(torch.sum, scores.view(torch.float32), 1)  # nothing can be faster
            yield f"topk {short} {kind}", contenders


def encode(sizes: dict[str, cases.Size]) -> Timed:
    """Exact fp32 pre-acts, their TopK and ReLU."""
    for name, size in sizes.items():
        scale = size.d**-0.5
        x, W = cases.normal(size.n, size.d), torch.randn(size.d_sae, size.d, generator=cases.generator(1)).mul_(scale)
        b = cases.normal(size.d_sae, seed=2, scale=0.1)

        def ours(x: Tensor = x, W: Tensor = W, b: Tensor = b, k: int = size.k) -> Tensor:
            return sk.encode(x, W, b, sk.TopK(k)).values

        def plain(x: Tensor = x, W: Tensor = W, b: Tensor = b, k: int = size.k) -> Tensor:
            return F.linear(x, W, b).topk(k, sorted=False)[0].relu()

        check(ours().sort().values, plain().sort().values)
        yield f"encode fp32 {name}", {OURS: ours, "torch": plain}


def decode(size: cases.Size) -> Timed:
    """Against `F.embedding_bag`; and both with the gradients of values, W_dec and b_dec."""
    codes = cases.codes(size, empty=0)
    W, b = cases.dictionary(size)[2:]
    cotangent = cases.normal(size.n, size.d, seed=9)
    leaves = [t.requires_grad_() for t in (codes.values, W, b)]

    def both(run: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(run(), leaves, cotangent)

    def ours() -> Tensor:
        return sk.decode(codes, W, b)

    def plain() -> Tensor:
        return bag(codes, W, b)

    check(ours().detach(), plain().detach())
    for mine, theirs in zip(both(ours)(), both(plain)(), strict=True):
        check(mine, theirs)
    forward: Contenders = {OURS: torch.no_grad()(ours), "torch": torch.no_grad()(plain)}
    yield "decode forward S, embedding_bag", forward
    yield "decode forward + backward S, embedding_bag", {OURS: both(ours), "torch": both(plain)}


def step(size: cases.Size) -> Timed:
    """Loss, gradients and fused Adam of a TopK autoencoder."""
    names = {"torch, dense decode": "plain torch", "torch, embedding_bag": "torch + embedding_bag"}
    yield "step fp32 S", {names.get(name, name): run for name, run in steps(size).items()}


def gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a product small enough for a torch without fast ones."""
    a, b = (torch.randn(384, 384).to(dtype) for _ in range(2))
    out, times = torch.empty_like(a), []
    for _ in range(15):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - start)
    return 2 * 384**3 / statistics.median(times) / 1e9


def column(parts: list[str], rounds: int, small: bool) -> dict[str, object]:
    """What one process measures; says on standard error where it is."""
    sizes = {name: cases.SIZES[name] for name in ("S", "L", "XL")}
    if small:
        sizes = {name: replace(size, n=max(64, size.n // 16)) for name, size in sizes.items()}
    timed = {
        "topk": lambda: topk(sizes["S"]),
        "encode": lambda: encode(sizes),
        "decode": lambda: decode(sizes["S"]),
        "step": lambda: step(sizes["S"]),
    }
    rates = {name: gemm_rate(getattr(torch, name)) for name in ("float32", "bfloat16")}
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for what, contenders in timed[part]():
            print(f"  {what}", file=sys.stderr, flush=True)
            slow = part == "step" or what.endswith("L")
            found[what] = interleaved(contenders, min(rounds, 3) if slow else rounds, settle=True)
        gc.collect()
    return {
        "isa": _cpu.isa(),
        "aten": torch.backends.cpu.get_cpu_capability(),
        "screening": os.environ["SAE_KERNELS_SCREENING"],
        "threads": torch.get_num_threads(),
        "sizes": {name: str(size) for name, size in sizes.items()},
        "rates": rates,
        "ms": found,
    }


def measure(isa: str, arguments: argparse.Namespace) -> dict:
    """A column, in a process held to `isa`."""
    print(f"{isa}:", file=sys.stderr, flush=True)
    held = {**TORCH_HELD_TO[isa], "SAE_KERNELS_ISA": isa, "SAE_KERNELS_SCREENING": arguments.screening}
    if not arguments.keep:
        held["SAE_KERNELS_SCREEN_CACHE"] = "0"
    command = [sys.executable, __file__, "--column", "--rounds", str(arguments.rounds), "--parts", *arguments.parts]
    if arguments.small:
        command.append("--small")
    run = subprocess.run(command, env={**os.environ, **held}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def ratios(result: dict) -> dict[str, tuple[float, float, float]]:
    """(torch over ours, ours in ms, torch in ms) of everything measured."""
    found = {}
    for what, ms in result["ms"].items():
        for name, other in ms.items():
            if name != OURS:
                label = what if name == "torch" else f"{what}, {name}"
                found[label] = (other / ms[OURS], ms[OURS], other)
    return found


def table(results: dict[str, dict]) -> str:
    """The goals with what was measured beside them; then everything in milliseconds."""
    first = next(iter(results.values()))
    lines = [f"{time.strftime('%Y-%m-%d')}   {cpu_name()}, {first['threads']} threads   torch {torch.__version__}"]
    lines += ["   ".join(f"{name} = {size}" for name, size in first["sizes"].items()), ""]
    for isa, result in results.items():
        rates = "   ".join(f"{name} {rate:.1f}" for name, rate in result["rates"].items())
        lines.append(
            f"{TITLES[isa]}: ours on {result['isa']}, screening {result['screening']}; "
            f"ATen on {result['aten']}; torch.mm in GFLOP/s: {rates}"
        )
    lines += ["", f"{'torch / ours':48}" + "".join(f"{TITLES[isa]:>30}" for isa in results)]
    found = {isa: ratios(result) for isa, result in results.items()}
    for what, goals in GOALS.items():
        cells = ""
        for isa in results:
            goal = goals[list(TORCH_HELD_TO).index(isa)]
            if what in found[isa]:
                ratio = found[isa][what][0]
                cells += f"{ratio:12.2f}  goal {goal:5.2f} {'met' if ratio >= goal else 'MISSED':>6}"
        lines.append(f"{what:48}{cells}" if cells else f"{what:48}   not measured")
    for isa in results:
        lines += ["", f"{TITLES[isa]}:"]
        lines += [
            f"    {what:46}{mine:10.2f} ms   torch {other:10.2f} ms  {ratio:7.2f}x"
            for what, (ratio, mine, other) in found[isa].items()
        ]
    return "\n".join(lines)


def cpu_name() -> str:
    """As Linux names it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown CPU"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", nargs="+", choices=list(TORCH_HELD_TO), default=list(TORCH_HELD_TO))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison; 3 at most of the longest")
    parser.add_argument("--small", action="store_true", help="a sixteenth of the tokens: to see that it runs")
    parser.add_argument("--screening", choices=("auto", "off"), default="auto")
    parser.add_argument("--keep", action="store_true", help="keep copies of weights in fewer bits, as is the default")
    parser.add_argument("--save", metavar="MACHINE", help="write bench/results/<date>-MACHINE-isa.txt")
    parser.add_argument("--column", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.column:
        print(json.dumps(column(arguments.parts, arguments.rounds, arguments.small)))
        return
    missing = set(arguments.isas) - set(_cpu.isas())
    if missing:
        sys.exit(f"this machine does not run {', '.join(sorted(missing))}; it runs {', '.join(_cpu.isas())}")
    text = table({isa: measure(isa, arguments) for isa in arguments.isas})
    print(text)
    if arguments.save:
        path = ROOT / "bench" / "results" / f"{time.strftime('%Y-%m-%d')}-{arguments.save}-isa.txt"
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
