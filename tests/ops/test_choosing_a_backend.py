"""Argument > `use()` > environment > priority; an explicit choice never falls back; every candidate is explained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sae_kernels as sk
from bench import cases
from sae_kernels import registry, settings
from sae_kernels.errors import BackendError, UnknownNameError
from sae_kernels.kernels import OPS, _cpu
from sae_kernels.plugins import plugins
from sae_kernels.specs import Kernel, resolve

ops = torch.ops.sae_kernels
CALLS: list[str] = []


class Stranger:
    """Two more backends for spmm: one that runs before all others, one that always declines."""

    @sk.hookimpl
    def sae_kernels_kernels(self) -> list[Kernel]:
        def run(values, indices, offsets, W):
            CALLS.append("eager")
            return W.new_zeros(values.shape[0], W.shape[1])

        return [
            Kernel("spmm", "eager", run, lambda *_: None, priority=99),
            Kernel("spmm", "shy", run, lambda *_: "it is shy", priority=100),
            Kernel("topk", "quiet", run, lambda *_: None, priority=-99, how=lambda: "takes no arguments"),
            Kernel("spmm", "gone", "no_such_package.at_all:run", "no_such_package.at_all:why_not", priority=101),
        ]


@pytest.fixture
def stranger() -> Iterator[None]:
    plugins().register(Stranger(), "stranger")
    CALLS.clear()
    yield
    plugins().unregister("stranger")


@pytest.fixture
def codes() -> sk.SparseCodes:
    return cases.codes(cases.ORDINARY)


@pytest.fixture
def W() -> torch.Tensor:
    return cases.normal(301, 45)


def test_the_highest_priority_that_would_run_is_chosen(stranger: None, codes: sk.SparseCodes, W: torch.Tensor) -> None:
    sk.decode(codes, W)
    assert CALLS == ["eager"]
    told = sk.explain("decode", codes, W)
    assert told.chosen == "eager"
    names = [candidate.backend for candidate in told.candidates]
    assert names[:3] == ["gone", "shy", "eager"]
    assert names.index("cpu") < names.index("reference")
    assert told.candidates[1].reason == "it is shy"
    assert "cannot be imported" in (told.candidates[0].reason or "")


def test_use_environment_and_argument(
    stranger: None, codes: sk.SparseCodes, W: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(backend: str = "") -> str:
        CALLS.clear()
        sk.decode(codes, W, backend=backend)
        return CALLS[0] if CALLS else "reference"

    assert chosen() == "eager"
    monkeypatch.setenv("SAE_KERNELS_BACKEND", "reference")
    assert chosen() == "reference"
    with sk.use("eager"):
        assert chosen() == "eager"
        with sk.use("reference"):
            assert chosen() == "reference"
            assert chosen("eager") == "eager"
        assert chosen() == "eager"
    assert chosen() == "reference"
    assert sk.explain("decode", codes, W).chosen == "reference"


def test_use_is_put_back_after_an_error(stranger: None, codes: sk.SparseCodes, W: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="mine"), sk.use("reference"):
        raise RuntimeError("mine")
    sk.decode(codes, W)
    assert CALLS == ["eager"]


def test_an_explicit_choice_never_falls_back(stranger: None, codes: sk.SparseCodes, W: torch.Tensor) -> None:
    with pytest.raises(BackendError) as caught:
        sk.decode(codes, W, backend="shy")
    lines = str(caught.value).splitlines()
    assert lines[0] == 'spmm: backend "shy" was asked for and declined'
    assert "values (37, 7) float32 cpu" in lines[1]
    assert "W (301, 45) float32 cpu" in lines[1]
    assert "  shy: it is shy" in lines
    assert "  reference: would run" in lines
    with sk.use("shy"), pytest.raises(BackendError, match="it is shy"):
        sk.decode(codes, W)
    assert CALLS == []


def test_float64_on_the_cpu_backend_is_declined_with_the_reason(cpu: str) -> None:
    x, W = torch.ones(2, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    with pytest.raises(BackendError, match="cpu: dtype is float64"):
        sk.encode(x, W, None, sk.TopK(2), backend=cpu)
    with sk.use(cpu), pytest.raises(BackendError, match="float64"):
        sk.topk(x, 1)
    assert sk.encode(x, W, None, sk.TopK(2)).values.dtype == torch.float64  # left to itself it takes the reference


def test_an_unknown_backend_names_the_nearest(codes: sk.SparseCodes, W: torch.Tensor) -> None:
    with pytest.raises(UnknownNameError, match="unknown backend of spmm 'refrence': did you mean 'reference'"):
        sk.decode(codes, W, backend="refrence")


def test_the_backward_obeys_the_choice_of_the_forward(stranger: None, codes: sk.SparseCodes, W: torch.Tensor) -> None:
    """encode's gradient to x is an spmm: where the forward was told a backend, so is that."""
    x = torch.ones(4, 45, requires_grad=True)
    sk.encode(x, W, None, sk.TopK(3), backend="reference").values.sum().backward()
    assert CALLS == []


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_both_backends_and_both_can_be_imported(op: str, cpu: str) -> None:
    mine = {kernel.backend: kernel for kernel in registry.kernels.all() if kernel.op == op}
    assert {"reference", cpu} <= set(mine)
    for kernel in mine.values():
        assert callable(resolve(kernel.run))
        assert callable(resolve(kernel.why_not))
        assert kernel.how is None or callable(resolve(kernel.how))


@pytest.mark.parametrize("selection", [sk.TopK(3), sk.Threshold(0.0), sk.BatchTopK(2)], ids=str)
def test_explain_says_how_a_kernel_would_go_about_it(cpu: str, selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    W, x = torch.empty(2048, 128), torch.empty(64, 128)
    for mode, words in (("on", "exact, screened by bfloat16 products"), ("off", "all of it in float32")):
        monkeypatch.setenv("SAE_KERNELS_SCREENING", mode)
        assert f"  {cpu}: would run ({words})\n" in str(sk.explain("encode", x, W, None, selection))
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "int8")
    here = _cpu.isa() in ("avx512", "amx") and _cpu.ask("fast_int8") and isinstance(selection, sk.TopK)
    told = str(sk.explain("encode", x, W, None, selection))
    assert ("exact with probability at least 1 - 1e-9 a token" in told.split("reference:")[0]) == here
    monkeypatch.setenv("SAE_KERNELS_SCREENING", "auto")
    if not isinstance(selection, sk.BatchTopK):
        assert "would run (a few tokens, in one call)" in str(sk.explain("encode", x[:1], W, None, selection))


def test_a_kernel_that_cannot_say_how_would_run_all_the_same(stranger: None) -> None:
    assert "  quiet: would run (how: TypeError: " in str(sk.explain("topk", torch.empty(2, 3), 1))


def test_explain_encode_decode_and_topk(cpu: str) -> None:
    W, b, _, _ = cases.dictionary(cases.ORDINARY)
    x = cases.normal(37, 45)
    for selection, op in (
        (sk.TopK(3), "linear_topk"),
        (sk.Threshold(0.0), "linear_threshold"),
        (sk.BatchTopK(2), "linear_batch_topk"),
    ):
        told = sk.explain("encode", x, W, b, selection)
        assert (told.op, told.chosen) == (op, cpu)
        assert "would run" in str(told)
        assert "x (37, 45) float32 cpu" in str(told)
    told = sk.explain("encode", x.double(), W.double(), b.double(), sk.TopK(3))
    assert told.chosen == "reference"
    assert "cpu: dtype is float64" in str(told)
    assert sk.explain("topk", x, 3).op == "topk"
    with pytest.raises(UnknownNameError, match="did you mean 'encode'"):
        sk.explain("encod", x)


def test_explain_runs_nothing(stranger: None, codes: sk.SparseCodes, W: torch.Tensor) -> None:
    sk.explain("decode", codes, W)
    sk.explain("spmm", *codes.flat(), W)
    assert CALLS == []


def test_one_that_answers_by_kind_is_asked_once_of_a_kind() -> None:
    asked: list[torch.dtype] = []

    def why_not(values, indices, offsets, W):
        asked.append(W.dtype)
        return None if W.dtype == torch.float32 else "only float32"

    def run(values, indices, offsets, W):
        return W.new_full((values.shape[0], W.shape[1]), 7.0)

    class Choosy:
        @sk.hookimpl
        def sae_kernels_kernels(self) -> list[Kernel]:
            return [Kernel("spmm", "choosy", run, why_not, priority=99, by_kind=True)]

    codes, W = cases.codes(cases.ORDINARY), cases.normal(301, 45)
    plugins().register(Choosy(), "choosy")
    try:
        for _ in range(3):
            assert sk.decode(codes, W).eq(7).all()
        once = 1 if W.is_cpu else 3  # elsewhere, devices are compared with every call
        assert asked == [torch.float32] * once
        for _ in range(2):
            assert not sk.decode(codes.to(dtype=torch.bfloat16), W.bfloat16()).eq(7).any()
        assert asked[once] == torch.bfloat16
        with sk.use("reference"):
            assert not sk.decode(codes, W).eq(7).any()
        assert sk.decode(codes, W).eq(7).all()
    finally:
        plugins().unregister("choosy")
    assert not sk.decode(codes, W).eq(7).any()


def test_the_environment_is_heeded_as_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "SAE_KERNELS_BACKEND"
    monkeypatch.delenv(name, raising=False)
    assert settings.read(name) == ""
    os.environ[name] = "reference"
    assert settings.read(name) == "reference"
    os.environ.update({name: "cpu"})
    assert settings.read(name) == "cpu"
    del os.environ[name]
    assert settings.read(name) == ""
    assert settings.read("SAE_KERNELS_SCREENING") == os.environ.get("SAE_KERNELS_SCREENING", "auto")


def test_a_call_on_the_cpu_does_not_import_triton() -> None:
    code = (
        "import sys, torch, sae_kernels as sk; x, W = torch.randn(2, 8), torch.randn(16, 8);"
        "sk.decode(sk.encode(x, W, None, 3), W); sys.exit('triton' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
