"""Regular expressions of layers' names, matched without backtracking.

A file's ``quantization_config`` may hold any expression, and Python's ``re`` takes exponential time
for some. Here a set of positions is carried through the expression instead (Thompson 1968), in time
bounded by the lengths of expression and name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["TargetPattern"]

# Maps the positions where a part may begin to those where it may end.
_Step = Callable[[str, set[int]], set[int]]

_TOKEN = re.compile(
    r"\\[dwDW\W_]|\[\^?(?:\\[dw.\-_]|[A-Za-z0-9_.]|-(?=[A-Za-z0-9_\]]))+\]|\(\?:|[^\\\[\]{}]"
)
_LENGTH = 1000
_NESTING = 4


class TargetPattern:
    r"""Expression for layers' names: letters, ``.``, ``\d``, classes, groups, ``|*+?^$``.

    Parameters
    ----------
    text : str

    Raises
    ------
    ValueError
        For an expression with anything else in it (look-around, counts, back-references), of more
        than 1000 characters, or with groups more than 4 deep.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        position = 0
        while match := _TOKEN.match(text, position):
            self._tokens.append(match[0])
            position = match.end()
        if position < len(text) or len(text) > _LENGTH:
            raise self._error()
        self._next = 0
        self._step = self._alternatives(0)
        if self._next < len(self._tokens):  # a group closed that was not open
            raise self._error()

    def matches(self, name: str) -> bool:
        """Return whether the beginning of ``name`` matches, as in ``re.match``."""
        return bool(self._step(name, {0}))

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]

    def _alternatives(self, depth: int) -> _Step:
        branches = [self._sequence(depth)]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence(depth))
        return lambda name, starts: set().union(*(step(name, starts) for step in branches))

    def _sequence(self, depth: int) -> _Step:
        steps: list[_Step] = []
        while self._peek() not in ("", "|", ")"):
            steps.append(self._repeated(self._atom(depth)))

        def run(name: str, positions: set[int]) -> set[int]:
            for step in steps:
                positions = step(name, positions)
            return positions

        return run

    def _atom(self, depth: int) -> _Step:
        token = self._take()
        if token in ("(", "(?:"):
            if depth == _NESTING:
                raise self._error()
            inner = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._error()
            self._take()
            return inner
        if token == "^":
            return lambda name, starts: starts & {0}
        if token == "$":
            return lambda name, starts: starts & {len(name)}
        if token in "*+?":
            raise self._error()
        try:
            fits = re.compile(token).fullmatch
        except re.error:
            raise self._error() from None
        return lambda name, starts: {i + 1 for i in starts if i < len(name) and fits(name[i])}

    def _repeated(self, step: _Step) -> _Step:
        mark = self._peek()
        if mark not in ("*", "+", "?"):
            return step
        self._take()
        if self._peek() == "?":  # lazy: another order of search, the same matches
            self._take()
        if mark == "?":
            return lambda name, starts: starts | step(name, starts)

        def run(name: str, starts: set[int]) -> set[int]:
            reached = step(name, starts) if mark == "+" else set(starts)
            new = reached
            while new:
                new = step(name, new) - reached
                reached |= new
            return reached

        return run

    def _error(self) -> ValueError:
        return ValueError(
            f"expected letters, '.', '\\d', classes, groups and |*+?^$ in an expression of at most "
            f"{_LENGTH} characters, got {self._text[:80]!r}"
        )
