"""Random calls of the C++ kernels, between forbidden pages. SAE_KERNELS_FUZZ sets how many of each op (`make sanitize`:
thousands); SAE_KERNELS_FUZZ_SAY=1 names each before it runs, so that one that ends the process can be found."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
from support import fuzz

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
CASES = int(os.environ.get("SAE_KERNELS_FUZZ", "30"))


@pytest.mark.parametrize("op", list(fuzz.CALLS))
def test_random_calls(cpu: str, op: str) -> None:
    ended: Counter[str] = Counter()
    for number in range(CASES):
        if os.environ.get("SAE_KERNELS_FUZZ_SAY") == "1":
            os.write(2, f"{op} {number}\n".encode())
        try:
            ended[fuzz.run_case(op, number)] += 1
        except Exception as error:
            error.add_note(f"the call: support.fuzz.run_case({op!r}, {number})")
            raise
    assert ended["equal"] >= CASES // 4
    assert ended["refused"] >= CASES // 30
