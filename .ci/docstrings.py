"""Checks docstrings: ``python .ci/docstrings.py``.

Docstrings of public names follow numpydoc's rules: names in ``__all__`` of the package and of the rooms
that users call, and the public methods of their classes. Every docstring, also of a variable, begins with a
verb or a noun of the field. Prints one line for each fault, and exits 1 if there is any.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from numpydoc.validate import validate

ROOMS = (
    "numbacalib",
    "numbacalib.methods",
    "numbacalib.models",
    "numbacalib.quantizer",
    "numbacalib.statistics",
)
FORM = {"GL03", "GL06", "GL07", "GL08", "PR02", "PR03", "PR05", "PR10", "RT05", "SS06"}
"""The docstring exists, with a summary in one line, known sections in order without double blank lines,
and parameters, if described, that match the signature in name and order."""
OF_FUNCTIONS = FORM | {"EX01", "PR01", "RT01"}
"""Also an example, every parameter and the result. Classes describe fields where these are defined."""
PACKAGE = Path(__file__).parent.parent / "numbacalib"
QUESTIONS = ("What", "How", "Whether", "Where", "Which", "When", "Why", "Who")
"""First words that no docstring may have."""


def public_names() -> Iterator[tuple[str, str, set[str]]]:
    """Yield each public object's name, its place of definition, and the codes of its rules."""
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, (type, FunctionType)):
                continue  # a constant, described where it is defined
            where = f"{thing.__module__}.{thing.__qualname__}"
            yield f"{room}.{name}", where, FORM if isinstance(thing, type) else OF_FUNCTIONS
            if isinstance(thing, type):
                for member, value in vars(thing).items():
                    if not member.startswith("_") and isinstance(value, FunctionType):
                        yield f"{room}.{name}.{member}", f"{where}.{member}", FORM


def faults() -> Iterator[str]:
    """Yield one line for each rule that is broken."""
    for name, where, codes in public_names():
        for code, message in validate(where)["errors"]:
            if code in codes:
                yield f"{name}: {code} {message}"


def questions() -> Iterator[str]:
    """Yield one line for each docstring that begins like a question."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    word = text.strip().partition(" ")[0]
                    if word in QUESTIONS:
                        where = f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
                        yield f"{where}: expected a verb or a noun of the field first, got {word}"


if __name__ == "__main__":
    found = [*faults(), *questions()]
    print("\n".join(found))
    sys.exit(1 if found else 0)
