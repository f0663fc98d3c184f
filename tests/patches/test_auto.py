"""Patching without touching a line: by `enable`, by `python -m sae_kernels.patch`, by SAE_KERNELS_PATCH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sae_kernels
from sae_kernels.errors import UnknownNameError
from sae_kernels.patches import auto

HOST = """
import torch
class Coder(torch.nn.Module):
    def __init__(self, broken=False):
        super().__init__()
        self.broken = broken
    def forward(self, x):
        return x
class Derived(Coder):
    def __init__(self):
        super().__init__()
"""
PLUGIN = """
import sae_kernels as sk
from sae_kernels.patches._swap import swap
from sae_kernels.specs import Patch

def why_not(module):
    if type(module).__name__ != "Coder":
        return "no Coder"
    if module.broken:
        raise RuntimeError("no idea")

def apply(module):
    return swap(module, {"forward": lambda self, x: x + 1})

@sk.hookimpl
def sae_kernels_patches():
    return [Patch("fake", "for a test", why_not, apply, ("fakehost.coders:Coder", "fakehost.gone:Coder"))]
"""
ENTRY = "[sae_kernels]\nfake_plugin = fake_plugin\n"
SCRIPT = """
import sys
assert "torch" not in sys.modules, "torch must not be there before the program imports it"
import fakehost
import os, warnings
from fakehost import coders
import json  # some import
print("args", sys.argv[1:], __name__)
coder = coders.Coder()
print("patched", coder(1), type(coder).__name__, isinstance(coder, coders.Coder))
print("derived", coders.Derived()(1))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print("broken", coders.Coder(broken=True)(1), [str(w.message) for w in caught])
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A host library, an installed plugin that patches it, and a script that knows nothing of either."""
    (tmp_path / "fakehost").mkdir()
    (tmp_path / "fakehost" / "__init__.py").write_text("from .coders import Coder\nimport fractions\n")
    (tmp_path / "fakehost" / "coders.py").write_text(HOST)
    (tmp_path / "fake_plugin.py").write_text(PLUGIN)
    info = tmp_path / "fake_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run(world: Path, *command: str, **environment: str) -> str:
    found = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(world), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, *command], env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(out: str, patched: bool, arguments: list[str]) -> None:
    lines = out.splitlines()
    assert lines[0] == f"args {arguments} __main__"
    assert lines[1] == f"patched {2 if patched else 1} Coder True"
    assert lines[2] == "derived 1", "a class the patch does not know stays as it is"
    assert lines[3] == ("broken 1 ['sae_kernels: Coder stays as it is: no idea']" if patched else "broken 1 []")


def test_without_anything(world: Path) -> None:
    check(run(world, str(world / "script.py"), "a"), False, ["a"])


def test_the_environment_variable(world: Path) -> None:
    startup = Path(sae_kernels.__file__).parent / "patches" / "startup"
    assert (
        (startup / "sae_kernels_startup.pth").read_text().startswith("import os; os.environ.get('SAE_KERNELS_PATCH')")
    )
    begin = "import sys, runpy, _sae_kernels_startup; sys.argv = sys.argv[1:]; "
    begin += "runpy.run_path(sys.argv[0], None, '__main__')"
    for names in ("fake", "all"):
        out = run(
            world,
            "-c",
            f"import sys; sys.path.append({str(startup)!r}); {begin}",
            str(world / "script.py"),
            "a",
            "-b",
            SAE_KERNELS_PATCH=names,
        )
        check(out, True, ["a", "-b"])


def test_a_name_nobody_registered_has_no_effect_but_a_warning(world: Path) -> None:
    startup = Path(sae_kernels.__file__).parent / "patches" / "startup"
    code = (
        f"import sys, warnings; sys.path.append({str(startup)!r}); import _sae_kernels_startup, torch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import fractions"
    )
    out = run(world, "-c", code + "\nprint([str(w.message) for w in caught])", SAE_KERNELS_PATCH="fkae")
    assert "SAE_KERNELS_PATCH=fkae has no effect: unknown patch 'fkae': did you mean 'fake'?" in out


def test_the_installed_package_starts_with_python() -> None:
    """The .pth file lies where Python reads it."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print('_sae_kernels_startup' in sys.modules, 'torch' in sys.modules)"],
        env={**os.environ, "SAE_KERNELS_PATCH": "all"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]


def test_the_module_runner(world: Path) -> None:
    script = str(world / "script.py")
    no_torch = (world / "script.py").read_text().replace('assert "torch" not in sys.modules', 'assert True or ""')
    (world / "script.py").write_text(no_torch)
    check(run(world, "-m", "sae_kernels.patch", script, "a", "--only", "b"), True, ["a", "--only", "b"])
    check(run(world, "-m", "sae_kernels.patch", "--only", "fake", "-m", "script", "x"), True, ["x"])


def test_importing_the_runner_leaves_the_function(world: Path) -> None:
    code = "import sae_kernels.patch, sae_kernels as sk, torch\ntry:\n    sk.patch(torch.nn.Linear(2, 2))\n"
    out = run(world, "-c", code + "except sk.errors.BackendError as error:\n    print(error)")
    assert "no registered patch takes this module" in out


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown patch 'nonsense'"):
        auto.enable(["nonsense"])
