"""`python tests/support/ahead_table.py` writes tests/on_triton/kernels.tsv: what every kernel needs on every target, in
every dtype and configuration; `--check` compiles them all and compares, which `make ahead` does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TABLE = TESTS / "on_triton" / "kernels.tsv"
sys.path[:] = [*sys.path, *(str(path) for path in (TESTS, TESTS.parent) if str(path) not in sys.path)]

import torch  # noqa: E402

from bench import cases  # noqa: E402
from support.ahead_calls import ODD, SIZES, calls  # noqa: E402

HEAD = ("target", "kernel", "choice", "types", "constants", "registers", "spills", "shared")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Row = tuple[str, ...]

# What is compiled for each target: sizes whose built-in choices, and sizes all of whose choices are wanted.
PLANS: dict[str, tuple[list[str], list[str]]] = {
    "sm_90": (["B", "C", "odd"], ["A"]),
    "sm_80": (["C", "odd"], ["A"]),
    "gfx942": (["A"], []),
}


def size(name: str) -> cases.Size:
    """One of the sizes, or the odd one."""
    return ODD if name == "odd" else SIZES[name]


def compiled(target: str, where: cases.Size, dtype: torch.dtype, every_choice: bool) -> Iterator[Row]:
    """A row for each kernel that the calls at one size compile."""
    from sae_kernels.kernels._triton import ahead, tuning

    seen: set[str] = set()

    def new(kernels: list, choice: str) -> Iterator[Row]:
        for kernel in kernels:
            if kernel.hash not in seen:
                seen.add(kernel.hash)
                found = ahead.measure(kernel)
                sizes = (found.registers, found.spills, found.shared)
                yield (target, found.kernel, choice, found.types, found.constants, *map(str, sizes))

    for call in calls(where, dtype):
        with ahead.target(target) as kernels, tuning.recording() as picks:
            call()
        yield from new(kernels, "built-in")
        for pick in picks if every_choice else ():
            for config in pick.choices[1:]:
                with ahead.target(target) as kernels, tuning.forced(pick.kernel, config):
                    call()
                yield from new(kernels, "offered")


def job(target: str, names: list[str], dtype: torch.dtype, every_choice: bool) -> list[Row]:
    """One process's share."""
    torch.set_num_threads(1)
    return [row for name in names for row in compiled(target, size(name), dtype, every_choice)]


def table() -> list[Row]:
    """Every row, sorted; one process a core. What several calls compile alike stands once, built-in before offered."""
    jobs = []
    for target, plan in PLANS.items():
        for names, every_choice in zip(plan, (False, True), strict=True):
            jobs += [(target, names, dtype, every_choice) for dtype in DTYPES if names]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        rows = [row for rows in pool.map(job, *zip(*jobs, strict=True)) for row in rows]
    best: dict[Row, Row] = {}
    for row in sorted(rows):
        key = (row[0], row[1], *row[3:])
        best.setdefault(key, row)
    return sorted(best.values())


def read() -> list[Row]:
    """The table that is kept, without its head."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines[2:]]


def version() -> str:
    """The first line: what compiled it."""
    import triton

    return f"# Triton {triton.__version__}"


def main() -> None:
    """Write the table, or compare."""
    start = time.perf_counter()
    rows = table()
    if "--check" in sys.argv[1:]:
        changed = sorted(set(rows) ^ set(read()))
        print("\n".join("\t".join(row) for row in changed) or f"{len(rows)} kernels as {TABLE.name} says")
        sys.exit(bool(changed))
    text = "\n".join([version(), "\t".join(HEAD), *("\t".join(row) for row in rows)]) + "\n"
    temporary = TABLE.with_suffix(".part")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(TABLE)
    print(f"{len(rows)} kernels in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
