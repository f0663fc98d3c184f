"""Plain and patched in turn: one row for each operation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

import sae_kernels as sk
from bench.peers.host import Call, Host, Learner
from bench.peers.memory import peak_extra_mib
from bench.peers.problem import Problem
from sae_kernels.errors import BackendError
from sae_kernels.measure import interleaved

PLAIN, PATCHED, OURS, EXACT = "plain", "patched", "our trainer", "exact"
BACKWARD, STEP = "forward + backward", "training step"
READS = ("encode", "decode", "forward", "encode_sparse", "decode_sparse")
TIES = 2
Row = dict[str, Any]
Ours = Callable[[Problem], Call]


@dataclass(frozen=True)
class Race:
    """How operations are timed, and which: those that `wanted(host, operation, dtype)` says are."""

    rounds: int
    wanted: Callable[[str, str, str], bool]
    memory: bool = True

    def rows(self, host: Host, problem: Problem, ours: Ours | None) -> Iterator[Row]:
        """Of one library and dtype. `ours` makes a step of our trainer, which runs in the same rounds as theirs."""
        asked = [op for op in (*READS, BACKWARD, STEP) if self.wanted(host.name, op, _name(problem.dtype))]
        if any(op in READS for op in asked):
            yield from self._reads(host, problem, asked)
        if any(op in (BACKWARD, STEP) for op in asked):
            yield from self._learns(host, problem, ours, asked)

    def _reads(self, host: Host, problem: Problem, asked: list[str]) -> Iterator[Row]:
        module = host.reader(problem)
        if module is None:
            return
        modules = {PLAIN: module}
        with _declined(host):
            sk.patch(other := host.twin(module))
            modules[PATCHED] = other
        calls = {name: host.reads(each, problem.x) for name, each in modules.items()}
        if problem.dtype != torch.float32:
            wide = problem.in_float32()
            calls[EXACT] = host.reads(host.reader(wide), wide.x)
        for op in [op for op in calls[PLAIN] if op in asked]:
            contenders = {name: torch.no_grad()(each[op]) for name, each in calls.items()}
            results = {name: host.shown(call()) for name, call in contenders.items()}
            yield self._row(host, problem, op, contenders, results)

    def _learns(self, host: Host, problem: Problem, ours: Ours | None, asked: list[str]) -> Iterator[Row]:
        learner = host.learner(problem)
        if learner is None:
            return
        learners = {PLAIN: learner}
        with _declined(host):
            learners[PATCHED] = learner.patched()
        modules = [each.module for each in learners.values()]
        if BACKWARD in asked:
            contenders = {name: _backward(each, problem.x) for name, each in learners.items()}
            results = {name: _gradients(each, contenders[name]) for name, each in learners.items()}
            if problem.dtype != torch.float32:
                wide = problem.in_float32()
                exact = cast("Learner", host.learner(wide))
                results[EXACT] = _gradients(exact, _backward(exact, wide.x))
                del exact
            yield self._row(host, problem, BACKWARD, contenders, results, modules)
        if STEP in asked:
            contenders = {name: _step(each, problem.x) for name, each in learners.items()}
            if ours is not None and host.like_ours:
                contenders[OURS] = ours(problem)
            yield self._row(host, problem, STEP, contenders, {}, modules)

    def _row(
        self,
        host: Host,
        problem: Problem,
        op: str,
        contenders: dict[str, Call],
        results: dict[str, Tensor],
        modules: Sequence[nn.Module] = (),
    ) -> Row:
        contenders.pop(EXACT, None)
        row: Row = {"host": host.name, "operation": op, "dtype": _name(problem.dtype)}
        ranked = problem.size.n * problem.size.k if host.ranks_batches else None
        row["error"] = _errors(f"{host.name}, {op}", results, ranked)
        # twice before: what a patch keeps of weights that stay as they are is there from the second call on
        row["ms"] = interleaved(contenders, self.rounds, warmup=2, settle=True)
        row["peak_extra_mib"] = {}
        for name, call in contenders.items() if self.memory else ():
            for module in modules:
                module.zero_grad(set_to_none=True)  # gradients count
            row["peak_extra_mib"][name] = peak_extra_mib(call)
        return row


@contextlib.contextmanager
def _declined(host: Host) -> Iterator[None]:
    """Says so, where no patch takes a module."""
    try:
        yield
    except BackendError:
        print(f"{host.name}: no patch takes it")


def _backward(learner: Learner, x: Tensor) -> Call:
    def run() -> None:
        learner.module.zero_grad(set_to_none=True)
        learner.loss(x).backward()

    return run


def _step(learner: Learner, x: Tensor) -> Call:
    return lambda: learner.step(x)


def _gradients(learner: Learner, backward: Call) -> Tensor:
    """All of them, one after the other."""
    backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learner.module.parameters()]
    )


def _errors(what: str, results: dict[str, Tensor], ranked: int | None) -> dict[str, float]:
    """‖result - right‖ / ‖right‖: right is what the library gives in float32; there, the patched result must be that,
    but for `TIES` where so many latents are `ranked` together that some at the last rank are the same.

    In a narrower dtype near ties at rank k are decided by rounding, in the library as in the patch: the patched result
    may be off by no more than the plain one, and a half.
    """
    if PATCHED not in results:
        return {}
    right = results.pop(EXACT, results[PLAIN]).float()
    errors = {name: float((result.float() - right).norm() / right.norm()) for name, result in results.items()}
    allowed = 1e-4 + (math.sqrt(2 * TIES / ranked) if ranked else 0.0) + 1.5 * errors[PLAIN]
    if not errors[PATCHED] <= allowed:
        raise RuntimeError(f"{what}: patched, the result is off by {errors[PATCHED]:.1e}; allowed are {allowed:.1e}")
    return errors


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
