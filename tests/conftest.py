"""Fixtures for the whole suite: backends, poisoned memory, thread counts, seeds."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
for folder in (
    HERE,
    HERE.parent,
):  # for `support` and `bench`; behind an installed package, which is the one to test
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from sae_kernels.kernels import _cpu  # noqa: E402

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what `poison`'s deterministic mode asks of cuBLAS

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # a process of its own, for the Triton kernels alone
GPU = not INTERPRETING and torch.cuda.is_available()
BACKENDS = ("triton",) if INTERPRETING else ("reference", "cpu", "triton") if GPU else ("reference", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require_cpu() -> None:
    """Skip where the extension is not built; fail instead where SAE_KERNELS_REQUIRE_CPU=1 says it must be."""
    reason = _cpu.why_not()
    if reason is None:
        return
    if os.environ.get("SAE_KERNELS_REQUIRE_CPU") == "1":
        pytest.fail(f"SAE_KERNELS_REQUIRE_CPU=1, and {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def running_on(count: int) -> Iterator[None]:
    """Run on that many threads and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def threads() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with threads(2): …`."""
    return running_on


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For dense arithmetic on tiny tensors, where waking a second thread costs more than the work."""
    with running_on(1):
        yield


@contextlib.contextmanager
def ready_for(name: str) -> Iterator[str]:
    """The reference and the interpreter on one thread, the C++ kernels on as many as torch gives. The Triton kernels'
    tensors lie on the GPU, where there is one: what a test makes meanwhile, it makes there."""
    if name == "cpu":
        require_cpu()
    with contextlib.ExitStack() as during:
        if name in ("reference", "triton"):
            during.enter_context(running_on(1))
        if name == "triton" and GPU:
            during.enter_context(torch.device("cuda"))
        yield name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend of this machine."""
    with ready_for(request.param) as name:
        yield name


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"])
def fast(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend of this machine but the reference, which is PyTorch and checks less."""
    with ready_for(request.param) as name:
        yield name


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype the fast backends take."""
    return request.param


@pytest.fixture
def cpu() -> str:
    """The C++ backend, for tests that concern it alone."""
    require_cpu()
    return "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory holds NaN, or the largest integer: an element nobody wrote shows.

    `tests/kernels` and `tests/ops` ask for it on every test.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
