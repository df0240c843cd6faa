"""Conversion of a command's options to settings, and to and from a TOML file by option name."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numbacalib.quantize_options import BITS, GRID, SETTINGS

if TYPE_CHECKING:
    from numbacalib.quantizer import Settings


def with_config(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with ``--config FILE`` replaced by the options in the file.

    An option on the command line overrides the file's option of that name and any that contradicts it.
    ``model`` becomes the positional argument right after the command, if none is given.

    Raises
    ------
    ValueError
        If the file is not TOML, or a value has a type that no option takes.
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
    "--full-range": ("--no-full-range",),
    "--refit": ("--no-refit",),
    "--static-groups": ("--no-static-groups",),
}


def _taken(arguments: list[str], option: str) -> str | None:
    """Remove an option and its values from arguments, and return the last value."""
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
        negative = {"--symmetric": ["--asymmetric"], "--awq-weight-term": [], "--full-range": []}
        negative |= {"--lm-head": [], "--embeddings": []}
        return [option] if value else negative.get(option, [option.replace("--", "--no-", 1)])
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return [option, *map(str, value)] if value else []
    if isinstance(value, (str, int, float)):
        return [f"{option}={value}"]
    raise ValueError(
        f"{file}: {option[2:]}: expected text, a number, true or false, or a list of them"
    )


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings for the options of `quantize`.

    Raises
    ------
    ValueError, TypeError
        If bits are not numbers, or a setting is invalid.
    """
    from numbacalib.formats import FORMATS
    from numbacalib.quantizer import Settings

    grid = {name: vars(options)[name] for name in GRID if name in vars(options)}
    for name in options.format or ():
        if name in FORMATS:
            FORMATS[name].check_own_grid(grid)
    given: dict[str, Any] = {name: (GRID | vars(options))[name] for name in SETTINGS}
    if options.method == "awq":  # as published: scales, clipping, rounding
        given |= {"method": "rtn", "channel_scales": "awq"}
        given["ranges"] = "clip" if options.ranges == "auto" else options.ranges
    bits, layer_bits = _bits((GRID | grid)["bits"])
    return Settings(
        **given,
        bits=bits,
        layer_bits=layer_bits,
        skip=tuple(options.skip),
    )


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run by name, for a settings file, without the paths of its results."""
    from numbacalib.formats import FORMATS

    found: dict[str, Any] = {}
    own_grid = any(FORMATS[name].own_grid for name in options.format or ())
    given = vars(options) if own_grid else GRID | vars(options)
    for name, value in given.items():
        if name in _NOT_OF_A_RUN:
            continue
        if value is None and name in _NONE:
            value = _NONE[name]
        if isinstance(value, list):
            value = [str(item) for item in value]
        elif isinstance(value, Path):
            value = str(value)
        found[name.replace("_", "-")] = value
    return found


_NONE = {"shrinkage": "auto", "group_size": "none"}
"""Command-line words for None."""
_NOT_OF_A_RUN = {
    "command",
    "prints_result",
    "json",
    "output",
    "report",
    "work",
    "clean",
    "quiet",
    "verbose",
}
_NOT_OF_A_RUN |= {"plan", "calibration"}


def _bits(given: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Split the values of ``--bits`` into the default width and the widths by pattern."""
    plain, layers = BITS, {}
    for text in given:
        pattern, _, number = text.rpartition("=")
        if not number.lstrip("-").isdecimal():
            raise ValueError(f"bits: expected a number or PATTERN=NUMBER, got {text!r}")
        if pattern:
            layers[pattern] = int(number)
        else:
            plain = number
    return int(plain), layers
