"""A settings file in TOML: options of a command by name, which go before those of the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def with_config(arguments: Sequence[str]) -> list[str]:
    """Return arguments of a command in which ``--config FILE`` stands for the options in the file.

    An option that is given on the command line, or one that goes against it, is left out of the file's.
    ``model`` goes where the positional argument is expected, right after the command, if none is there.

    Raises
    ------
    ValueError
        If the file is no TOML, or a value is no option's.
    OSError
        If it cannot be read.
    """
    rest = list(arguments)
    file = _taken(rest, "--config")
    if file is None:
        return rest
    given = {argument.partition("=")[0] for argument in rest}
    found: list[str] = []
    for name, value in read_config(Path(file)).items():
        option = f"--{name.replace('_', '-')}"
        if name != "model":
            if not given & {option, *_AGAINST.get(option, ())}:
                found += _as_arguments(Path(file), option, value)
        elif rest[1:2] == [] or rest[1].startswith("-"):
            rest.insert(1, str(value))
    return [*rest, *found]


def read_config(file: Path) -> dict[str, Any]:
    """Read a settings file.

    Raises
    ------
    ValueError, OSError
        As `with_config`.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected a settings file in TOML ({error})") from None


_AGAINST = {
    "--symmetric": ("--asymmetric",),
    "--text": ("--statistics",),
    "--statistics": ("--text",),
    "--refit": ("--no-refit",),
    "--static-groups": ("--no-static-groups",),
}


def _taken(arguments: list[str], option: str) -> str | None:
    """Take an option with its value out of arguments; the last counts."""
    value = None
    while True:
        for index, argument in enumerate(arguments):
            if argument.startswith(f"{option}="):
                value = argument.partition("=")[2]
                del arguments[index]
                break
            if argument == option and index + 1 < len(arguments):
                value = arguments[index + 1]
                del arguments[index : index + 2]
                break
        else:
            return value


def _as_arguments(file: Path, option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        negative = {"--symmetric": ["--asymmetric"], "--awq-weight-term": []}
        return [option] if value else negative.get(option, [option.replace("--", "--no-", 1)])
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return [option, *map(str, value)] if value else []
    if isinstance(value, (str, int, float)):
        return [f"{option}={value}"]
    raise ValueError(
        f"{file}: {option[2:]}: expected text, a number, true or false, or a list of them"
    )
