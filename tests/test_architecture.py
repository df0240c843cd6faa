"""Rooms import downward only, as docs/architecture.md has them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "numbacalib"
FLOORS = (
    {"runtime", "spec", "terminal"},  # spec is compiled by runtime.jit; the reductions are of spec
    {"ops"},
    {"linalg", "statistics"},
    {"methods", "models"},
    {"formats"},
    {"quantizer"},
    {"config_file", "demo", "options", "warm_up"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file):
    """Rooms of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module="numbacalib", names=names):
                modules = [f"numbacalib.{alias.name}" for alias in names]
            case ast.ImportFrom(module=str(module)):
                modules = [module]
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case _:
                continue
        yield from (name.split(".")[1] for name in modules if name.startswith("numbacalib."))


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} <= set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_run_downward(room):
    for file in FILES:
        if room_of(file) != room:
            continue
        for other in set(imported_rooms(file)) - {room}:
            level = FLOOR[other] < FLOOR[room] or FLOOR[room] == FLOOR[other] == 0
            assert level, f"{file.relative_to(PACKAGE)} imports {other}"
