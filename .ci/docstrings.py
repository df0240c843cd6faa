"""Checks docstrings: ``python .ci/docstrings.py``.

Those of the public names by numpydoc's rules. Public are the names of ``__all__`` of the package and of the
rooms that users call, with the public methods of their classes. Of all docstrings, those of variables too,
the first word: a verb or a noun of the field. Prints one line a fault, and exits 1 if there is any.
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
"""A docstring at all, with a summary in one line, known sections in their order without double blank
lines, and parameters, where they are described, that are those of the signature, in its order."""
OF_FUNCTIONS = FORM | {"EX01", "PR01", "RT01"}
"""Also an example, every parameter, and what is returned. Classes describe fields where they stand."""
PACKAGE = Path(__file__).parent.parent / "numbacalib"
QUESTIONS = ("What", "How", "Whether", "Where", "Which", "When", "Why", "Who")
"""Words with which no docstring begins."""


def public_names() -> Iterator[tuple[str, str, set[str]]]:
    """Give each public object's name, where it is defined, and the codes of what must hold for it."""
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, (type, FunctionType)):
                continue  # a constant, described where it stands
            where = f"{thing.__module__}.{thing.__qualname__}"
            yield f"{room}.{name}", where, FORM if isinstance(thing, type) else OF_FUNCTIONS
            if isinstance(thing, type):
                for member, value in vars(thing).items():
                    if not member.startswith("_") and isinstance(value, FunctionType):
                        yield f"{room}.{name}.{member}", f"{where}.{member}", FORM


def faults() -> Iterator[str]:
    """Give one line for each rule that does not hold."""
    for name, where, codes in public_names():
        for code, message in validate(where)["errors"]:
            if code in codes:
                yield f"{name}: {code} {message}"


def questions() -> Iterator[str]:
    """Give one line for each docstring that begins like a question."""
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
