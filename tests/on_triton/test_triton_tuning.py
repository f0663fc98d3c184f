"""Configurations: forced, measured, stored, read back, and ignored where they are no longer offered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import cases
from sae_kernels.cli import main
from sae_kernels.kernels._triton import tuning
from sae_kernels.kernels._triton.tuning import INTERPRETER, Config, Pick, pick

ops = torch.ops.sae_kernels
CHOICES = [Config({"BLOCK": 16}, 1), Config({"BLOCK": 32}, 2), Config({}, 4, 3)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path))
    tuning.forget()
    yield tmp_path
    monkeypatch.undo()
    tuning.forget()


def test_the_first_choice_unless_another_was_measured_or_is_forced(cache: Path) -> None:
    assert pick("mine", "small", CHOICES) is CHOICES[0]
    assert list(cache.iterdir()) == []
    path = tuning.write(INTERPRETER, {("mine", "small"): CHOICES[1]}, "2026-11-21")
    assert path.parent == cache
    assert pick("mine", "small", CHOICES) == CHOICES[1]
    assert pick("mine", "large", CHOICES) is CHOICES[0]
    assert pick("yours", "small", CHOICES) is CHOICES[0]
    with tuning.forced("mine", CHOICES[2]):
        assert pick("mine", "small", CHOICES) is CHOICES[2]
        assert pick("yours", "small", CHOICES) is CHOICES[0]
    assert pick("mine", "small", CHOICES[::2]) is CHOICES[0]  # no longer among the curated


def test_what_is_stored_is_kept_when_more_is_measured() -> None:
    tuning.write(INTERPRETER, {("a", "x"): CHOICES[1], ("a", "y"): CHOICES[0]}, "")
    tuning.write(INTERPRETER, {("a", "y"): CHOICES[2], ("b", "x"): CHOICES[1]}, "")
    assert tuning.read(INTERPRETER) == {
        ("a", "x"): CHOICES[1],
        ("a", "y"): CHOICES[2],
        ("b", "x"): CHOICES[1],
    }
    assert tuning.read("another") == {}


@pytest.mark.parametrize("config", CHOICES, ids=str)
def test_a_configuration_as_text_and_back(config: Config) -> None:
    assert tuning.parse(str(config)) == config


@pytest.mark.parametrize(
    "configs", [None, {"mine": {"small": "fast"}}, {"mine": {"small": 3}}, {"mine": ["small"]}, "x"], ids=str
)
def test_a_damaged_table_is_named_once_and_ignored(configs: object) -> None:
    path = tuning.write(INTERPRETER, {("mine", "small"): CHOICES[1]}, "")
    data = json.loads(path.read_text(encoding="utf-8"))
    for text in (json.dumps({**data, "configs": configs}), json.dumps({**data, "version": 0}), "{"):
        path.write_text(text, encoding="utf-8")
        tuning.forget()
        with pytest.warns(RuntimeWarning, match="ignored") as caught:
            assert pick("mine", "small", CHOICES) is CHOICES[0]
        assert len(caught) == 1
        assert str(path) in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pick("mine", "small", CHOICES)
    tuning.write("device", {("mine", "small"): CHOICES[2]}, "")


def test_a_recording_holds_each_pick_once() -> None:
    size = cases.Size(2, 8, 9, 3)
    codes, W = cases.codes(size).flat(), cases.normal(9, 8)
    with tuning.recording() as picks:
        ops.spmm(*codes, W, backend="triton")
        ops.spmm(*codes, W, backend="triton")
    assert [each.kernel for each in picks] == ["spmm"]
    assert all(isinstance(each, Pick) and each.choices for each in picks)
    ops.spmm_t(*codes, cases.normal(2, 8), 9, backend="triton")
    assert len(picks) == 1  # it has ended


def test_warmup_stores_what_it_measured(cache: Path, capsys: pytest.CaptureFixture, one_thread: None) -> None:
    """All of the command, on a size where the interpreter is bearable and one op."""
    from sae_kernels.commands import bench_warmup

    every = bench_warmup.calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bench_warmup, "calls", lambda *args: [each for each in every(*args) if each[0] in ("spmm", "transpose")]
        )
        assert main(["bench", "warmup", "--shape", "2,8,12,2", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "spmm" in shown
    assert str(cache) in shown
    stored = tuning.read(INTERPRETER)
    assert {kernel for kernel, _ in stored} >= {"spmm", "transpose"}
    with tuning.recording() as picks:
        ops.spmm(*cases.codes(cases.Size(2, 8, 12, 2)).flat(), cases.normal(12, 8), backend="triton")
    (asked,) = picks
    assert pick(asked.kernel, asked.size_class, asked.choices) == stored[asked.kernel, asked.size_class]
    assert stored[asked.kernel, asked.size_class] in asked.choices


def test_a_configuration_that_does_not_run_is_passed_over(capsys: pytest.CaptureFixture) -> None:
    from sae_kernels.commands import bench_warmup

    def call() -> None:
        if pick("mine", "x", CHOICES) == CHOICES[0]:
            raise RuntimeError("out of resource: shared memory")

    found = bench_warmup._best(Pick("mine", "x", tuple(CHOICES[:2])), call, torch.device("cpu"), 1)
    assert found == CHOICES[1]
    assert "mine" in capsys.readouterr().out
