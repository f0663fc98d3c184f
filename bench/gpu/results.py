"""Where figures go: one JSON per step and machine, rewritten after every comparison, and the same as a table."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.gpu.race import OURS

Key = tuple[str, str, str, str]


def device_name(device: torch.device) -> str:
    """`h200`, as it stands in file names."""
    if device.type != "cuda":
        return "interpreter"
    words = torch.cuda.get_device_name(device).lower().replace("nvidia", "")
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    import triton

    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, Triton's interpreter",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    for key, command in {
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "commit": ["git", "rev-parse", "--short", "HEAD"],
    }.items():
        try:
            about[key] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            about[key] = None
    return about


class Results:
    """The figures of one case, found again where an earlier call left off."""

    def __init__(self, step: str, device: torch.device, out: Path, places: Iterable[Path], again: bool) -> None:
        name = device_name(device)
        self.path = out / f"{date.today().isoformat()}-{name}-{step}.json"
        self.data: dict[str, Any] = {"step": step, "complete": False, "comparisons": []}
        found = [] if again else [file for place in places for file in place.glob(f"*-{name}-{step}.json")]
        if found:
            latest = max(found, key=lambda file: (file.name, file.stat().st_mtime))
            self.data = json.loads(latest.read_text(encoding="utf-8"))
            print(f"going on from {latest}: {len(self.data['comparisons'])} comparisons")

    @staticmethod
    def key(row: dict[str, Any]) -> Key:
        """What a comparison is of."""
        return row["group"], row["name"], row["dtype"], row["draw"]

    @property
    def complete(self) -> bool:
        """Nothing is left to do."""
        return self.data["complete"]

    @property
    def done(self) -> set[Key]:
        """What there are figures of."""
        return {self.key(row) for row in self.data["comparisons"]}

    def failures(self) -> list[str]:
        """Every contender that failed, with its reason."""
        return [
            f"{row['name']} [{row['dtype']}, {row['draw']}] {each['name']}: {each['reason']}"
            for row in self.data["comparisons"]
            for each in row["contenders"]
            if each["status"] == "failed"
        ]

    def write(self) -> None:
        """Both files, as they stand."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        self.path.with_suffix(".txt").write_text(table(self.data) + "\n", encoding="utf-8")


def table(data: dict[str, Any]) -> str:
    """For people. A ratio is a contender's time over ours, medians of the same rounds."""
    about = data.get("machine", {})
    lines = [
        f"{data['step']}: {data.get('size', '')}   {'complete' if data['complete'] else 'incomplete'}",
        "   ".join(f"{key} {value}" for key, value in about.items() if value),
        data.get("roofline_told", ""),
    ]
    lines += [f"sae_kernels runs on: {data['chosen']}"] if data.get("chosen") else []
    for row in data["comparisons"]:
        lines += ["", f"{row['name']}   [{row['dtype']}, {row['draw']} latents]   roofline {row['roofline_ms']:.3f} ms"]
        lines += [_line(each) for each in row["contenders"]]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    name = f"    {row['name']:44}"
    if row["status"] != "ok":
        return f"{name}{row['status']}: {row['reason']}"
    ratio = f"{row['ratio']:7.2f}x" if "ratio" in row and row["name"] != OURS else " " * 8
    rate = f"{row['tflops']:7.1f} TFLOP/s" if row["tflops"] >= 0.05 else " " * 15
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:9.0f} MiB"
    return (
        f"{name}{row['ms']:10.3f} ms{ratio}{100 * row['roofline_share']:6.0f} %{rate}{row['tb_per_s']:7.2f} TB/s"
        f"  host {row['host_ms']:8.3f} ms{peak}"
    )
