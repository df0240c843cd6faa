"""Options of the command line that many settings have: those of the methods, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numbacalib.quantizer import Settings

EXITS = (
    "Exit status: 0 done, 1 failed on the way, 2 an input does not fit, 130 interrupted, "
    "143 ended by SIGTERM, 129 terminal closed."
)
BITS = "4"
TEXT: dict[str, Any] = {
    "metavar": "FILE",
    "help": "calibration text: plain, .jsonl or .parquet with text or messages",
}
MAX_KL = "fail where the predictions are further from the original's: mean KL, nats a token"
EXAMPLES = {
    "quantize": """
  numbacalib quantize MODEL --text calibration.txt --output quantized/
  numbacalib quantize HuggingFaceTB/SmolLM2-135M --text chats.jsonl --bits 3 '*.down_proj=4' --output q3/
  numbacalib quantize MODEL --method rtn --skip 'model.layers.0.*' --output rounded/
  numbacalib quantize --config run.toml --output again/""",
    "collect": """
  numbacalib collect MODEL --text calibration.txt --output statistics/""",
    "evaluate": """
  numbacalib evaluate quantized/ --text held-out.txt --against MODEL --json""",
    "verify": """
  numbacalib verify quantized/ --against MODEL --text held-out.txt --max-kl 0.1""",
}


SETTINGS = (
    *("method", "group_size", "symmetric", "channel_scales", "awq_magnitude", "awq_weight_term"),
    *("ranges", "range_norm", "target", "target_strength", "refit", "act_order", "static_groups"),
    *(
        "experts",
        "percdamp",
        "damping_tries",
        "shrinkage",
        "max_fallbacks",
        "samples",
        "sequence_length",
    ),
)
"""Options that are settings by the same names."""


def add_methods(quantize: argparse.ArgumentParser) -> None:
    """Add the methods' options, whose names, choices and defaults are those of `quantizer.Settings`."""
    from numbacalib.quantizer.settings import CHOICES, DEFAULTS

    quantize.add_argument(
        "--channel-scales", choices=CHOICES["channel_scales"], help="scale channels first"
    )
    quantize.add_argument(
        "--awq-magnitude",
        choices=CHOICES["awq_magnitude"],
        help="of a channel's absolute inputs, what awq's scales are powers of (default %(default)s)",
    )
    quantize.add_argument(
        "--awq-weight-term",
        action="store_true",
        help="let awq's scales also fall with the channel's weights",
    )
    quantize.add_argument(
        "--ranges",
        choices=CHOICES["ranges"],
        help="what each group's grid spans (default %(default)s: weighted with gptq, full with rtn)",
    )
    quantize.add_argument(
        "--range-norm",
        type=float,
        metavar="POWER",
        help="power of the errors that ranges mse and weighted sum (default 2.4, at 2 bits 3)",
    )
    quantize.add_argument(
        "--target",
        choices=CHOICES["target"],
        help="propagated repairs in each layer what the quantized ones before it spoilt: the text runs "
        "through the original model too, in twice the time, with a second residual stream in memory "
        "(default %(default)s)",
    )
    quantize.add_argument(
        "--target-strength",
        type=float,
        metavar="SHARE",
        help="how far to repair, 0 to 1: the full way fits the calibration text best (default %(default)s)",
    )
    quantize.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        help="solve for the scales once the codes are known",
    )
    quantize.add_argument(
        "--importance",
        type=Path,
        metavar="FILE",
        help="imatrix (GGUF) or Fisher information for --ranges weighted (default: of the text)",
    )
    quantize.add_argument(
        "--act-order",
        choices=CHOICES["act_order"],
        help="order of the columns in gptq (default %(default)s, which needs static groups)",
    )
    quantize.add_argument(
        "--static-groups",
        action=argparse.BooleanOptionalAction,
        help="find all scales before any column is compensated (default)",
    )
    quantize.add_argument(
        "--experts",
        choices=CHOICES["experts"],
        help="tokens that an expert is calibrated on: those that its router sends to it, or all (default "
        "%(default)s)",
    )
    quantize.add_argument("--percdamp", type=float, help="damping (default %(default)s)")
    quantize.add_argument(
        "--damping-tries",
        type=int,
        help="1 fails where percdamp does not do (default %(default)s)",
    )
    quantize.add_argument(
        "--shrinkage",
        type=_share_or_auto,
        metavar="SHARE",
        help="shrink Hessians toward their diagonal, 0 to 1 or auto: for few tokens (default 0)",
    )
    quantize.add_argument(
        "--max-fallbacks",
        type=float,
        metavar="SHARE",
        help="fail where more of the layers need more damping (default %(default)s)",
    )
    quantize.set_defaults(**{name: DEFAULTS[name] for name in SETTINGS})


def _share_or_auto(text: str) -> float | None:
    return None if text == "auto" else float(text)


def add_proof(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument(
        "--held-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to evaluate the output on before it takes its name (default: a little of --text that "
        "the calibration leaves)",
    )
    quantize.add_argument("--max-kl", type=float, metavar="NATS", help=MAX_KL)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that options of `quantize` stand for.

    Raises
    ------
    ValueError, TypeError
        If bits are no numbers, or a setting is none.
    """
    from numbacalib.quantizer import Settings

    given: dict[str, Any] = {name: getattr(options, name) for name in SETTINGS}
    if options.method == "awq":  # as published: scales, clipping, rounding
        given |= {"method": "rtn", "channel_scales": "awq"}
        given["ranges"] = "clip" if options.ranges == "auto" else options.ranges
    bits, layer_bits = _bits(options.bits)
    return Settings(
        **given,
        bits=bits,
        layer_bits=layer_bits,
        skip=tuple(options.skip),
    )


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run by name, for a settings file: all but where the run leaves what."""
    found: dict[str, Any] = {}
    for name, value in vars(options).items():
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
"""Words of the command line for None."""
_NOT_OF_A_RUN = {"run", "prints_result", "output", "report", "work", "clean", "quiet", "verbose"}
_NOT_OF_A_RUN |= {"plan", "calibration"}


def _bits(given: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Split what --bits was given into the bits of most layers, and those of patterns."""
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
