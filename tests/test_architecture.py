"""Rooms import downward only, as docs/architecture.md has them, and no modules import in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
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
    {"quantize_options"},
    {"demo", "options", "warm_up"},
    {"config_file"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def module_of(file):
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


MODULES = {module_of(file) for file in PACKAGE.rglob("*.py")}


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file):
    """Modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                members = {f"{module}.{alias.name}" for alias in names}
                found = members & MODULES or {module}
            case ast.Import(names=names):
                found = {alias.name for alias in names}
            case _:
                continue
        yield from found & MODULES


def imported_rooms(file):
    """Rooms of the package that a file imports, inside functions too."""
    modules = (name.split(".") for name in imported_modules(file))
    return {name[1] for name in modules if len(name) > 1}


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} <= set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_run_downward(room):
    for file in FILES:
        if room_of(file) != room:
            continue
        for other in imported_rooms(file) - {room}:
            level = FLOOR[other] < FLOOR[room] or FLOOR[room] == FLOOR[other] == 0
            assert level, f"{file.relative_to(PACKAGE)} imports {other}"


def test_no_modules_import_in_a_circle():
    """Not by imports inside of functions either: a module can be understood without what uses it."""
    graph = {module_of(file): set(imported_modules(file)) - {module_of(file)} for file in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


BLAS_OF_NUMPY = {"dot", "inner", "matmul", "tensordot", "vdot"}


def test_products_on_the_cpu_are_our_own():
    """How NumPy's BLAS rounds may depend on its number of threads: `runtime.packed_product` says more."""
    for file in FILES:
        if "gpu" in file.stem:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.BinOp(op=ast.MatMult()) | ast.AugAssign(op=ast.MatMult()):
                    found = "@"
                case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in BLAS_OF_NUMPY:
                    found = name
                case _:
                    continue
            pytest.fail(
                f"{file.relative_to(PACKAGE)}, line {node.lineno}: a product by NumPy, {found}"
            )
