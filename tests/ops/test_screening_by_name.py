"""`encode(screening="int8")`: asked for by name, never the default, its probability said where one looks."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import sae_kernels as sk
from sae_kernels.errors import ArgumentError, BackendError
from sae_kernels.kernels import _cpu
from sae_kernels.kernels._screen import forget, integers
from sae_kernels.kernels.linear_topk import cpu_int8, in_integers

Problem = tuple[Tensor, Tensor, Tensor]
PROBABILITY = "exact with probability at least 1 - 1e-9 a token"


@pytest.fixture
def problem(cpu: str) -> Problem:
    """One that int8 takes, here."""
    x, W, b = torch.randn(2, 150, 64), torch.randn(2000, 64) / 8, torch.randn(2000) / 10
    reason = cpu_int8.why_not(x[0], W, b, [1], [True], [None])
    if reason:
        pytest.skip(reason)
    forget()
    return x, W, b


@pytest.fixture
def screened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each screening by 8 bits had that is right but for a probability."""
    calls: list[int] = []
    choose = in_integers.choose

    def counted(problem: Any, *rest: Any) -> object:
        if rest[-1] != integers.CERTAIN:
            calls.append(problem.x.shape[0])
        return choose(problem, *rest)

    monkeypatch.setattr(in_integers, "choose", counted)
    return calls


def test_the_codes_are_those_of_the_default(problem: Problem, screened: list[int]) -> None:
    by_name, plain = sk.encode(*problem, 16, screening="int8"), sk.encode(*problem, 16)
    assert screened == [300]
    assert torch.equal(by_name.indices, plain.indices)
    torch.testing.assert_close(by_name.values, plain.values)


def test_it_is_never_the_default(problem: Problem, screened: list[int]) -> None:
    sk.encode(*problem, 16)
    with sk.use("cpu"):
        sk.encode(*problem, 16)
    sk.encode(*problem, 16, backend="cpu")
    assert not screened
    told = str(sk.explain("encode", *problem, 16))
    assert told.startswith("linear_topk: cpu ")
    assert f"cpu_int8: only by name: encode(screening='int8'), {PROBABILITY}" in told


def test_explain_says_its_probability(problem: Problem) -> None:
    told = str(sk.explain("encode", *problem, 16, screening="int8"))
    assert told.startswith("linear_topk: cpu_int8 ")
    assert f"cpu_int8: would run (encode(screening='int8'), {PROBABILITY})" in told
    assert integers.RISK == 1e-9
    assert "1 - 1e-9" in (sk.encode.__doc__ or "")


def test_the_environment_asks_for_it_by_name_too(
    problem: Problem, screened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "int8")
    plain = sk.encode(*problem, sk.Threshold(0.5))  # of what it does not serve, nothing changes
    assert not screened
    assert plain.offsets is not None
    sk.encode(*problem, 16)
    assert screened == [300]
    assert str(sk.explain("encode", *problem, 16)).startswith("linear_topk: cpu_int8 ")
    assert str(sk.explain("encode", *problem, sk.Threshold(0.5))).startswith("linear_threshold: cpu ")
    double = [each.double() for each in problem]
    sk.encode(*double, 16)
    assert str(sk.explain("encode", *double, 16)).startswith("linear_topk: reference ")
    assert screened == [300]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_run_on_the_usual_kernels(problem: Problem, compiled: bool, screened: list[int]) -> None:
    leaves = [each.requires_grad_() for each in problem]

    def encode(x: Tensor, W: Tensor, b: Tensor, screening: str) -> Tensor:
        return sk.encode(x, W, b, 16, screening=screening).values

    run = torch.compile(encode, fullgraph=True, backend="aot_eager") if compiled else encode
    found = torch.autograd.grad(run(*leaves, "int8").square().sum(), leaves)
    assert screened == [300]
    for mine, theirs in zip(found, torch.autograd.grad(encode(*leaves, "").square().sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_several_top_ks(problem: Problem) -> None:
    among = torch.rand(2000) < 0.3
    wanted = (sk.TopK(8), sk.TopK(64, among=among, relu=False))
    by_name, plain = sk.encode(*problem, wanted, screening="int8"), sk.encode(*problem, wanted)
    for mine, theirs in zip(by_name, plain, strict=True):
        assert torch.equal(mine.indices, theirs.indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"screening": "int4"}, "unknown screening 'int4': did you mean 'int8'?"),
        ({"screening": "fast"}, "unknown screening 'fast': known: int8"),
        ({"screening": 8}, "screening is a int, expected a name: int8"),
        ({"screening": "int8", "backend": "reference"}, 'screening="int8" is the backend "cpu"\'s, found backend "ref'),
        ({"screening": "int8", "selection": sk.Threshold(0.0)}, 'screening="int8" serves TopK alone, found Threshold'),
        ({"screening": "int8", "selection": (sk.TopK(1), sk.BatchTopK(1))}, "serves TopK alone, found BatchTopK"),
    ],
)
def test_what_it_does_not_serve_is_an_error(options: dict[str, object], message: str) -> None:
    x, W = torch.randn(3, 4), torch.randn(9, 4)
    given = {"selection": 2, **options}
    with pytest.raises(ArgumentError) as caught:
        sk.encode(x, W, None, **given)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert message in str(caught.value)
    with pytest.raises(ArgumentError):
        sk.explain("encode", x, W, None, given.pop("selection"), **given)  # pyright: ignore[reportArgumentType]


def test_it_is_an_argument_of_encode_alone() -> None:
    with pytest.raises(ArgumentError, match='screening="int8" is an argument of "encode" alone, found "topk"'):
        sk.explain("topk", torch.randn(3, 4), 2, screening="int8")


def test_what_it_declines_says_why(problem: Problem) -> None:
    x, W, b = problem
    with pytest.raises(BackendError, match="cpu_int8: W's rows do not lie in one piece, strides"):
        sk.encode(x, W.mT.contiguous().mT, b, 16, screening="int8")
    with pytest.raises(BackendError, match="cpu_int8: dtype is float64"):
        sk.encode(x.double(), W.double(), None, 16, screening="int8")


@pytest.mark.skipif(not _cpu.available() or "avx2" not in _cpu.isas(), reason="no AVX2 here")
def test_machines_without_vnni_are_told() -> None:
    code = """
import torch, sae_kernels as sk
try:
    sk.encode(torch.randn(3, 4), torch.randn(9, 4), None, 2, screening="int8")
except sk.errors.BackendError as error:
    assert "cpu_int8: instruction set is avx2 (needs avx512 with VNNI)" in str(error), error
else:
    raise SystemExit("ran")
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "SAE_KERNELS_ISA": "avx2"}, check=True, timeout=120)
