"""`make bench`; or `pytest bench --size S --benchmark-json=r.json`, then `python bench/report.py r.json`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)  # for `bench.cases`; behind an installed package

from bench import cases  # noqa: E402
from sae_kernels.measure import interleaved  # noqa: E402

OURS = "sae_kernels"
Contenders = dict[str, Callable[[], object]]


def pytest_addoption(parser: pytest.Parser) -> None:
    sizes = "; ".join(f"{name}: {size}" for name, size in cases.SIZES.items())
    parser.addoption("--size", choices=list(cases.SIZES), default="small", help=sizes)
    parser.addoption("--rounds", type=int, default=7, help="interleaved rounds of each comparison (default: 7)")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Benchmarks are named bench_*.py, which pytest would pass over."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> cases.Size:
    """The size asked for."""
    return cases.SIZES[request.config.getoption("--size")]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes worth timing on a CPU."""
    return request.param


@pytest.fixture
def race(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[str, Contenders], None]:
    """`race(group, {OURS: …, "torch …": …})`, once the results are checked: medians of interleaved rounds go into the
    JSON as `interleaved_ms`, which ratios are made of; pytest-benchmark's own table shows ours alone."""

    def run(group: str, contenders: Contenders) -> None:
        rounds = request.config.getoption("--rounds")
        benchmark.group = group
        benchmark.extra_info["size"] = str(cases.SIZES[request.config.getoption("--size")])
        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.extra_info["interleaved_ms"] = interleaved(contenders, rounds)
        benchmark.pedantic(contenders[OURS], rounds=rounds)

    return run


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Two results that may be timed against each other."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    allowed = 1e-4 if found.dtype == torch.float32 else 2e-2
    assert error <= allowed, f"the results differ by {error:.1e} of their norm: there is nothing to time"
