"""Compile, without a GPU, exactly what calls on a GPU would compile.

Inside `target(...)` an op is called on CPU tensors of any shape; Triton specialises and compiles every kernel of it for
the given machine and launches none. What the op returns is uninitialised memory: only the compiled kernels matter.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from . import pretend

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel as it would run, and what it needs of the machine."""

    kernel: str
    types: str  # of its pointers, in order: "bf16 i32 bf16 bf16"
    constants: str  # its constexprs and warps: "BLOCK_D=256 BLOCK_K=8 warps=1"
    registers: int  # per thread
    spills: int  # bytes of local memory per thread (NVIDIA), registers spilled (AMD)
    shared: int  # bytes per program


class _Driver:
    """Triton's driver, as far as compiling needs one."""

    def __init__(self, machine: GPUTarget) -> None:
        self._machine = machine

    def get_current_target(self) -> GPUTarget:
        return self._machine

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def target(name: str) -> Iterator[list[Any]]:
    """Compile for one of `TARGETS`; yields the list that fills with Triton's compiled kernels, one entry a
    specialisation."""
    compiled: list[Any] = []
    seen: set[str] = set()
    real, before = JITFunction.run, getattr(driver, "_active", None)

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool = False, **meta: Any) -> Any:
        if callable(grid):
            raise TypeError("grids are given as tuples: a callable one needs the bound arguments")
        kernel = real(self, *args, grid=grid, warmup=True, **meta)
        if kernel is not None and kernel.hash not in seen:
            seen.add(kernel.hash)
            compiled.append(kernel)
        return kernel

    caches = [(each, each.device_caches) for each in _kernels()]
    for each, _ in caches:
        each.device_caches = type(each.device_caches)(each.create_binder)
    driver.set_active(_Driver(TARGETS[name]))  # pyright: ignore[reportArgumentType]
    JITFunction.run = only_compile  # pyright: ignore[reportAttributeAccessIssue]
    pretend(True)
    try:
        yield compiled
    finally:
        pretend(False)
        JITFunction.run = real
        driver._active = before  # pyright: ignore[reportAttributeAccessIssue]
        for each, cache in caches:
            each.device_caches = cache


def _kernels() -> list[Any]:
    """Every jitted kernel of the package."""
    import importlib
    import pkgutil

    import sae_kernels.kernels as root

    found = []
    for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if "triton" in info.name and not info.ispkg and not info.name.endswith("ahead"):
            module = importlib.import_module(info.name)
            found += [each for each in vars(module).values() if isinstance(each, JITFunction)]
    return found


def measure(kernel: Any) -> Compiled:
    """What a compiled kernel needs, read off its machine code."""
    names = kernel.src.fn.arg_names
    signature = kernel.src.signature
    types = " ".join(signature[name][1:] for name in names if signature[name].startswith("*"))
    constants = {names[path[0]]: value for path, value in kernel.src.constants.items() if len(path) == 1}
    shown = [f"{name}={value}" for name, value in constants.items() if name.isupper()]
    registers, spills = _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)
    meta = kernel.metadata
    return Compiled(
        meta.name.lstrip("_"), types, " ".join([*shown, f"warps={meta.num_warps}"]), registers, spills, meta.shared
    )


def _nvidia(kernel: Any) -> tuple[int, int]:
    """Registers and bytes of local memory, as `cuobjdump` prints them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(rf"Function {re.escape(kernel.metadata.name)}:\s*(.*)", text.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump does not know {kernel.metadata.name}: {text.stdout!r}")
    usage = dict(item.split(":") for item in found.group(1).split() if ":" in item)
    return int(usage["REG"]), int(usage["LOCAL"]) + int(usage["STACK"])


def _amd(kernel: Any) -> tuple[int, int]:
    """Vector registers and spilled ones, as the assembly's metadata names them."""
    text = kernel.asm["amdgcn"]
    count = {key: int(n) for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s*(\d+)", text)}
    return count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]
