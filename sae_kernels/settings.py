"""Everything that is set from outside: one table of environment variables, and `use()` for the backend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple


class Variable(NamedTuple):
    """One environment variable the package reads."""

    name: str
    default: str
    meaning: str


VARIABLES = {
    v.name: v
    for v in (
        Variable(
            "SAE_KERNELS_BACKEND",
            "",
            "backend of every op, as `use()` sets it: reference, cpu, triton, …; never falls back",
        ),
        Variable("SAE_KERNELS_ISA", "", "pins the C++ kernels to one instruction set: baseline, avx2, avx512, amx"),
        Variable(
            "SAE_KERNELS_CHECK_INDICES",
            "",
            "1: on a GPU too, an index out of range is an error (the host waits for it)",
        ),
        Variable(
            "SAE_KERNELS_SCREENING",
            "auto",
            "encode on the CPU chooses by products of few bits what to compute in float32: auto (where it pays), on "
            "(always, in bfloat16), off; int8: TopK by 8-bit products, exact but for a stated probability",
        ),
        Variable(
            "SAE_KERNELS_SCREEN_CACHE",
            str(1 << 30),
            "bytes of bfloat16 or 8-bit copies that screening keeps of weights it meets again unchanged; 0: none",
        ),
        Variable(
            "SAE_KERNELS_PATCH",
            "",
            "comma-separated patches (sae_lens, …), or all: these libraries' modules are patched as they are made",
        ),
        Variable("SAE_KERNELS_BLOCK", "", "comma-separated plugin names that are not loaded"),
        Variable(
            "SAE_KERNELS_CACHE",
            "",
            "folder of what `bench calibrate` and `bench warmup` measured (~/.cache/sae_kernels)",
        ),
    )
}

_backend: ContextVar[str] = ContextVar("sae_kernels_backend", default="")


def _table() -> tuple[Container[Any], dict[str, Any]]:
    """What says in 0.1 µs that a variable is not set, and its names there. `os.environ` itself takes 0.8 µs, which each
    op would spend twice; the table behind it is CPython's own, and the same for as long as `os.environ` is."""
    try:
        return os.environ._data, {name: os.environ.encodekey(name) for name in VARIABLES}  # type: ignore[attr-defined]
    except AttributeError:
        return os.environ, {name: name for name in VARIABLES}


_SET, _KEYS = _table()


def read(name: str) -> str:
    """The value of one of `VARIABLES`, or its default."""
    default = VARIABLES[name].default
    return os.environ.get(name, default) if _KEYS[name] in _SET else default


def blocked_plugins() -> frozenset[str]:
    """Names in SAE_KERNELS_BLOCK."""
    return frozenset(filter(None, (part.strip() for part in read("SAE_KERNELS_BLOCK").split(","))))


def cache_dir() -> Path:
    """Where measurements of this machine are kept: SAE_KERNELS_CACHE, else sae_kernels in the user's cache directory.

    The folder need not exist; it is made when something is stored.
    """
    chosen = read("SAE_KERNELS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "sae_kernels"


def ask_for_huge_pages() -> None:
    """Let torch ask Linux for pages of 2 MiB for its tensors on a CPU, unless the environment says otherwise: for a
    program to call before the first tensor. Memory is read ahead only within a page, and each fresh one costs a fault.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def chosen_backend() -> str:
    """The backend in force: innermost `use()`, else the environment, else "" (choose by priority)."""
    return _backend.get() or read("SAE_KERNELS_BACKEND")


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Run every op inside the block on one backend: `with use("reference"): ...`.

    An explicit choice never falls back: an op whose kernel on that backend declines raises `BackendError` with the
    reasons. The choice follows the context (threads and tasks keep their own). A backward pass keeps to the
    choice its forward was made under, wherever and whenever it runs; without one, and in a compiled graph, it obeys the
    block around `.backward()` on the CPU, and none on a GPU (where autograd runs it in a thread of its own).
    """
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)
