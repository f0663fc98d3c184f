"""Imports go down only: each module of the package may import from its own floor or a lower one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sae_kernels"

FLOORS = (
    {"errors", "settings", "codes", "files", "_cpu"},
    {"specs", "registry", "hookspecs", "plugins"},
    {"kernels"},
    {"ops", "measure"},
    {"architectures", "adapters", "formats"},
    {"train", "evaluate", "steer", "features", "patches"},
    {"cli", "commands", "demo", "patch", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOP = {"__init__"}  # re-exports, and the version


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs; the ones under `if TYPE_CHECKING` don't."""
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in hidden:
            yield node


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """(room of this package, line) of every import in a file."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            for name in names:
                if name[0] == "sae_kernels":
                    yield name[1] if len(name) > 1 else "__init__", node.lineno
        elif node.level == depth:  # reaches the package's own level
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield name.split(".")[0], node.lineno
        elif node.level == 0 and (node.module or "").split(".")[0] == "sae_kernels":
            parts = (node.module or "").split(".")
            for name in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                yield name, node.lineno


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in modules()} - TOP
    assert rooms <= set(FLOOR_OF), f"give these a floor: {sorted(rooms - set(FLOOR_OF))}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if room_of(p) not in TOP], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down(path: Path) -> None:
    mine = FLOOR_OF[room_of(path)]
    for room, line in imported_rooms(path):
        if room in {"__version__", "__init__"}:
            continue
        assert room in FLOOR_OF, f"{path}:{line} imports {room!r}, which has no floor"
        assert FLOOR_OF[room] <= mine, f"{path}:{line} (floor {mine}) imports {room!r} of floor {FLOOR_OF[room]}"


def test_the_walk_sees_an_upward_import(tmp_path: Path) -> None:
    tree = ast.parse("from ..train import train\nif TYPE_CHECKING:\n    from ..cli import main\n")
    assert [node.module for node in imports(tree) if isinstance(node, ast.ImportFrom)] == ["train"]
