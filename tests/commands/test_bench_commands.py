"""`sae-kernels bench` and its modes: what they print, store and refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae_kernels.cli import main
from sae_kernels.kernels._cost import calibrate, constants

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path / "cache"))
    constants.forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    constants.forget()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of a fraction of a second: its numbers do not matter here."""
    measure = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", lambda device: measure(device, least_ms=0.2))


@pytest.mark.parametrize("mode", ["run", "calibrate", "warmup"])
def test_every_mode_has_help_with_an_example(mode: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", mode, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"sae-kernels bench {mode}" in shown.split("example:")[1]
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("words", [["run"], []])
def test_the_comparison_with_and_without_its_name(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *words, "--shape", "32,16,128,4", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "N 32  d 16  d_sae 128  k 4" in shown
    assert "embedding_bag" in shown


def test_options_before_the_mode_count(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--rounds", "0", "run"]) == 1
    assert "--rounds 0" in capsys.readouterr().err
    assert main(["bench", "--shape", "8,8,16,2", "run", "--rounds", "1"]) == 0
    assert "N 8  d 8" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["3", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,1,2,1", "4,4,4,5"])
def test_a_shape_that_is_none_is_wrong_usage(shape: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--shape", shape])
    assert stop.value.code == 2
    assert shape in capsys.readouterr().err


def test_calibrate_measures_stores_and_shows(cache: Path, quick: None, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "calibrate", "--device", "cpu", "--show"]) == 0
    assert "built-in guess" in capsys.readouterr().out
    assert not cache.exists()
    assert main(["bench", "calibrate", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for words in ("matrix product, bfloat16", "TFLOP/s", "GB/s", "stored in", "faster dense where d_sae / k is below"):
        assert words in shown
    (file,) = cache.iterdir()
    assert file == constants.file_of(CPU)
    assert constants.in_force(CPU).known
    assert main(["bench", "calibrate", "--device", "cpu", "--show"]) == 0
    assert str(file) in capsys.readouterr().out


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "calibrate", "--device", "gpu"]) == 1
    error = capsys.readouterr().err
    assert "--device gpu" in error
    assert error.count("\n") == 1
    if not torch.cuda.is_available():
        assert main(["bench", "--device", "cuda"]) == 1
        assert "no GPU that this PyTorch can use" in capsys.readouterr().err


def test_on_the_cpu_there_is_nothing_to_warm_up(cache: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "warmup", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "nothing to tune on cpu" in error
    assert error.count("\n") == 1
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_one_line(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path / "file"))
    assert main(["bench", "calibrate", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("sae-kernels bench: ")
