"""`bench/gpu_session.sh --dry-run`: the code that will run on a GPU runs here, on tiny sizes, to its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_session.sh"


def session(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        [SCRIPT, "--dry-run", *arguments], env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
def test_a_race_leaves_figures_and_a_table(tmp_path: Path) -> None:
    ran = session(tmp_path, "bench-C")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (file,) = tmp_path.glob("*-interpreter-bench-C.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["complete"]
    assert {row["group"] for row in data["comparisons"]} == {
        "encode",
        "decode",
        "decode backward",
        "step",
        "topk",
        "determinism",
    }
    assert {row["dtype"] for row in data["comparisons"]} == {"bfloat16", "float32"}
    for row in data["comparisons"]:
        ours = next(each for each in row["contenders"] if each["name"] == "sae_kernels")
        assert ours["ratio"] == 1
        assert ours["ms"] > 0
        assert ours["roofline_share"] > 0
    table = file.with_suffix(".txt").read_text(encoding="utf-8")
    assert "encode TopK   [bfloat16, uniform latents]" in table
    assert "No module named" in table or "sparsify" in table
    again = session(tmp_path, "bench-C")
    assert again.returncode == 0
    assert "complete already" in again.stdout


def test_the_other_steps_say_what_they_would_run(tmp_path: Path) -> None:
    ran = session(tmp_path, "install", "tune")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pip install" in ran.stdout
    assert "sae_kernels bench warmup" in ran.stdout
    (file,) = tmp_path.glob("*-interpreter-tune.txt")
    assert file.read_text(encoding="utf-8").rstrip().endswith("result: ok")


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    ran = session(tmp_path, "bench-D")
    assert ran.returncode == 2
    assert "unknown step: bench-D" in ran.stderr
