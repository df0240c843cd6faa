"""Formulas stand once: what `spec` defines, kernels of both targets call, and nothing else has.

Modules are read, not imported: the GPU's stand on CUDA.
"""

import ast
from pathlib import Path

import pytest

import numbacalib

PACKAGE = Path(numbacalib.__file__).parent
DECORATORS = {"scalar", "inlined", "register_jitable"}
"""What makes a compiled formula of a function."""


def parsed(path):
    return ast.parse(path.read_text(), str(path))


def formulas():
    """Public formulas by file, with the names that each one's code uses."""
    found = {}
    for path in sorted((PACKAGE / "spec").glob("*.py")):
        if path.name == "scalars.py":
            continue  # primitives, which formulas are made of
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef) and DECORATORS & {
                decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)
            }:
                found[node.name] = names(node)
    return found


def names(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def imported(tree):
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def used_by(target):
    """Names that the kernel modules of one target use, and what those formulas use themselves."""
    used = set()
    for room in ("ops", "linalg", "runtime"):
        for path in (PACKAGE / room).rglob("*.py"):
            modules = imported(parsed(path))
            on_gpu = "numbacalib.runtime.device" in modules  # where `cuda` comes from
            if on_gpu if target == "gpu" else "numbacalib.runtime.jit" in modules and not on_gpu:
                used |= names(parsed(path))
    formula = formulas()
    pending = used & set(formula)
    while pending:
        inner = set().union(*(formula[name] for name in pending)) & set(formula)
        pending = inner - used
        used |= inner
    return used


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_each_formula_is_called_by_kernels_of_both_targets(target):
    assert not set(formulas()) - used_by(target)


def test_no_formula_is_defined_twice():
    """Not under its name, in a kernel module of either target."""
    known = set(formulas())
    for room in ("ops", "linalg", "runtime", "methods"):
        for path in (PACKAGE / room).rglob("*.py"):
            tree = parsed(path)
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert not defined & known, path


def test_every_file_names_its_source_or_says_what_it_defines():
    for path in (PACKAGE / "spec").glob("*.py"):
        assert ast.get_docstring(parsed(path)), path
    for name in ("awq", "fisher", "hessian", "damping", "gptq", "range_search"):
        assert "(20" in ast.get_docstring(parsed(PACKAGE / "spec" / f"{name}.py")), name
