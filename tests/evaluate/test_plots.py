"""Plots are files that hold pictures of what was measured."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from support.runs import make_run

from sae_kernels.adapters import write_shard
from sae_kernels.cli import main
from sae_kernels.evaluate import plots

pytest.importorskip("matplotlib")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    write_shard(tmp_path / "shards" / "0.safetensors", torch.randn(6000, 8))
    made = []
    for name in ("a", "b"):
        run = make_run(tmp_path / name, {"adapter": "tensors", "path": str(tmp_path / "shards"), "heldout": 0.5}, 8)
        lines = [{"tokens": 100 * i, "fvu": 1 / (1 + i), "l0": 4.0, "dead": None} for i in range(5)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"tok')
        made.append(run)
    return made


def test_every_picture(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *map(str, runs), "--plots", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[-3:-1]] == [str(run) for run in runs]
    names = {"training", "density"}
    for run in runs:
        frontier = {"frontier"} if run == runs[0] else set()
        assert {path.name for path in (run / "plots").iterdir()} == {
            f"{name}.{form}" for name in names | frontier for form in ("png", "svg")
        }
    for name in ("training", "density", "frontier"):
        png = (runs[0] / "plots" / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert png.startswith(b"\x89PNG")
        assert width > 500 < height + 300
    svg = (runs[0] / "plots" / "density.svg").read_text()
    assert svg.count("<path") > 10


def test_drawing_twice_gives_the_same_svg(runs: list[Path]) -> None:
    results = {"metrics": {}, "language_model": LOSSES}
    first = {path.name: path.read_bytes() for path in plots.draw(runs[0], results)}
    assert "language_model.svg" in first
    assert first == {path.name: path.read_bytes() for path in plots.draw(runs[0], results)}


LOSSES = {
    "ablation": "zero",
    "ce_orig": 2.0,
    "ce_sae": 2.2,
    "ce_ablated": 9.0,
    "ce_recovered": None,
    "intervals": {"ce_orig": [1.9, 2.1], "ce_sae": [2.1, 2.3], "ce_ablated": None},
}


def test_without_matplotlib_it_says_what_to_install(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["evaluate", str(runs[0]), "--plots", "--quiet"]) != 0
    assert "pip install 'sae-kernels[plots]'" in capsys.readouterr().err
    assert not (runs[0] / "evaluation.json").exists()
