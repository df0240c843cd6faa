"""Optional packages: if one is missing, the error says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra `name` in the error of a failed import inside the ``with`` statement.

    Raises
    ------
    ModuleNotFoundError
        If a package is missing; one line that names it and the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "numbacalib"):
            raise
        text = f"{package} is not installed: pip install 'numbacalib[{name}]'"
        raise ModuleNotFoundError(text, name=error.name) from None
