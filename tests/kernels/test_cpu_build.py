"""The built extension: what its objects export, which instruction set runs, threads, forks, and bounds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_kernels.errors import ConfigError, IndexRangeError
from sae_kernels.kernels import _cpu
from sae_kernels.kernels.sddmm import cpu as sddmm
from sae_kernels.kernels.spmm import cpu as spmm
from sae_kernels.kernels.spmm_t import cpu as spmm_t
from sae_kernels.kernels.transpose import cpu as transpose

pytestmark = pytest.mark.skipif(not _cpu.available(), reason="the C++ extension is not built")

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = sorted(path for path in ROOT.glob("build/**/isa_*.cpp.o") if not {"sanitize", "arm", "amx"} & set(path.parts))

# Run in a process of its own: the instruction set is chosen once. Saves what the kernels compute.
PINNED = """
import sys, torch
from sae_kernels.kernels import _cpu
from sae_kernels.kernels.sddmm import cpu as sddmm
from sae_kernels.kernels.spmm import cpu as spmm
from sae_kernels.kernels.spmm_t import cpu as spmm_t
g = torch.Generator().manual_seed(0)
indices = torch.randint(0, 50, (40, 9), generator=g, dtype=torch.int32)
out = {"isa": _cpu.isa()}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    values, W, X = (torch.randn(s, generator=g).to(dtype) for s in ((40, 9), (50, 77), (40, 77)))
    out[f"spmm {dtype}"] = spmm.run(values, indices, None, W)
    out[f"spmm_t {dtype}"] = spmm_t.run(values, indices, None, X, 50)
    out[f"sddmm {dtype}"] = sddmm.run(X, W, indices, None, values)
torch.save(out, sys.argv[1])
"""


def _python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="no build directory, or no nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_objects_export_their_table_and_nothing_weak(path: Path) -> None:
    lines = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    exported = [line.split()[-2:] for line in lines.splitlines() if line.split()[-2] in "ABCDGRSTVWuvw"]
    isa = path.name.removeprefix("isa_").removesuffix(".cpp.o")
    assert [name for _, name in exported] == [f"sk_kernels_{isa}"]


def test_every_isa_computes_the_same(tmp_path: Path) -> None:
    results = []
    for isa in _cpu.isas():
        run = _python(PINNED, str(tmp_path / isa), SAE_KERNELS_ISA=isa)
        assert run.returncode == 0, run.stderr
        results.append(torch.load(tmp_path / isa))
        assert results[-1].pop("isa") == isa
    first = results[0]
    for other in results[1:]:
        for name, tensor in first.items():
            tolerance = 1e-5 if tensor.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_unknown_isa_is_an_error_that_lists_the_others() -> None:
    run = _python("from sae_kernels.kernels import _cpu; _cpu.isa()", SAE_KERNELS_ISA="avx9")
    assert run.returncode != 0
    assert f"{ConfigError.__name__}: SAE_KERNELS_ISA=avx9 is not available here; available: " in run.stderr
    assert ", ".join(_cpu.isas()) in run.stderr


def test_unknown_isa_does_not_break_the_import() -> None:
    assert _python("import sae_kernels, sae_kernels._cpu", SAE_KERNELS_ISA="avx9").returncode == 0


def test_capsule_is_named_and_versioned() -> None:
    from sae_kernels import _cpu as extension  # pyright: ignore[reportAttributeAccessIssue]

    assert '"sae_kernels.kernels.v1"' in repr(extension.kernels_capsule())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_computes_and_does_not_hang() -> None:
    run = _python(
        """
import os, signal, torch
from sae_kernels.kernels.spmm import cpu
torch.set_num_threads(2)
indices = torch.arange(400, dtype=torch.int32).view(100, 4)
W = torch.randn(400, 33)
run = lambda: cpu.run(torch.ones(100, 4), indices, None, W)
before = run()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(run(), before) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(run(), before)
"""
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hot", [False, True], ids=["even", "one hot latent"])
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, hot: bool) -> None:
    g = torch.Generator().manual_seed(0)
    values, X = torch.randn(3000, 6, generator=g).to(dtype), torch.randn(3000, 19, generator=g).to(dtype)
    indices = torch.randint(0, 40, (3000, 6), generator=g, dtype=torch.int32)
    if hot:
        indices[:, 0] = 7
    W = torch.randn(40, 19, generator=g).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (
                    spmm.run(values, indices, None, W),
                    spmm_t.run(values, indices, None, X, 40),
                    sddmm.run(X, W, indices, None, values),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_out_of_range_indices_are_refused_and_named() -> None:
    indices = torch.zeros(4, 6, dtype=torch.int32)
    indices[3, 5] = 70_000
    with pytest.raises(IndexRangeError, match=r"indices\[3, 5\] = 70000, expected 0 <= index < 65536"):
        spmm.run(torch.ones(4, 6), indices, None, torch.ones(65_536, 1))
    with pytest.raises(IndexRangeError, match=r"indices\[1\] = -1"):
        spmm_t.run(torch.ones(2), torch.tensor([0, -1]).int(), torch.tensor([0, 2]), torch.ones(1, 3), 5)


@pytest.mark.parametrize("offsets", [[0, 3, 2, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 1 << 40], [0, -1, 2, 4]])
def test_offsets_must_rise_from_0_to_nnz(offsets: list[int]) -> None:
    with pytest.raises(IndexRangeError, match="must rise from 0 to nnz = 4"):
        spmm.run(torch.ones(4), torch.zeros(4).int(), torch.tensor(offsets), torch.ones(2, 3))


@pytest.mark.parametrize("ragged", [False, True], ids=["fixed", "ragged"])
def test_parallel_transpose_is_the_stable_sort(ragged: bool) -> None:
    indices = torch.randint(0, 50, (60_000, 16), dtype=torch.int32)  # enough for threads
    rows, offsets = torch.arange(60_000).repeat_interleave(16), None
    if ragged:
        inner = torch.randint(0, indices.numel() + 1, (59_999,)).sort().values
        offsets = torch.cat([torch.tensor([0]), inner, torch.tensor([indices.numel()])])
        indices = indices.flatten()
        rows = torch.repeat_interleave(torch.arange(60_000), offsets.diff())
    order = torch.sort(indices.flatten(), stable=True).indices
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            got = transpose.run(indices, offsets, 50)
            assert torch.equal(got[0][1:], torch.bincount(indices.flatten(), minlength=50).cumsum(0))
            assert torch.equal(got[1], order)
            assert torch.equal(got[2].long(), rows[order])
    finally:
        torch.set_num_threads(before)
