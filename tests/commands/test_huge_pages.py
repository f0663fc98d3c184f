"""Programs of this package let torch ask for huge pages; what the environment says goes before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WHERE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(
    not WHERE.exists() or "[madvise]" not in WHERE.read_text(), reason="Linux gives huge pages to nobody, or to all"
)

SCRIPT = """
import torch

tensor = torch.ones(32 << 20)
with open("/proc/self/smaps_rollup") as lines:
    print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""
COMMAND = """
from pathlib import Path

from sae_kernels import cli
from sae_kernels.commands import info

info.run = lambda _: exec(Path({script!r}).read_text(), {{}})
cli.main(["info"])
"""


def kib_in_huge_pages(*command: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=clean | environment)
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


def test_a_tensor_lies_in_huge_pages(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    half = 64 << 10  # of the tensor, in KiB: the rest may lack a whole page
    assert kib_in_huge_pages(str(script)) < half
    for command in (["-m", "sae_kernels.patch", str(script)], ["-c", COMMAND.format(script=str(script))]):
        assert kib_in_huge_pages(*command) > half
        assert kib_in_huge_pages(*command, THP_MEM_ALLOC_ENABLE="0") < half
