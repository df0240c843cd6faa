"""Options of ``numbacalib quantize``, most of which are settings of the same names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

BITS = "4"
TEXT: dict[str, Any] = {
    "metavar": "FILE",
    "help": "calibration text: plain, .jsonl or .parquet with text or messages",
}
MAX_KL = "fail if the mean KL divergence from the original's predictions is larger, nats a token"
SETTINGS = (
    "method",
    "group_size",
    "size",
    "symmetric",
    "full_range",
    "lm_head",
    "embeddings",
    "channel_scales",
    "awq_magnitude",
    "awq_weight_term",
    "ranges",
    "range_norm",
    "target",
    "target_strength",
    "refit",
    "passes",
    "act_order",
    "static_groups",
    "experts",
    "percdamp",
    "damping_tries",
    "shrinkage",
    "max_fallbacks",
    "samples",
    "sequence_length",
    "own_text",
)
"""Options that are settings of the same names."""
GRID: dict[str, Any] = {"bits": [BITS], "group_size": 128, "symmetric": False}
"""Grid options with their defaults. The parser leaves out those not given, since some formats set them."""


def add_source(quantize: argparse.ArgumentParser) -> None:
    """Add options of the calibration's source."""
    source = quantize.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", type=Path, default=[], **TEXT)
    source.add_argument(
        "--statistics", type=Path, metavar="DIR", help="output of collect, instead of a text"
    )
    source.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="for ONNX models: .npz with an array for each input name, samples first; or a text, for "
        "models with a tokenizer.json beside them",
    )


def add_grid(quantize: argparse.ArgumentParser) -> None:
    """Add options of the layers' grids."""
    quantize.add_argument(
        "--bits",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="N",
        help="2 to 8, or PATTERN=N for the layers whose names match the pattern (default 4)",
    )
    quantize.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="layers to leave unquantized, such as '*.down_proj' or 'model.layers.0.*'",
    )
    quantize.add_argument(
        "--group-size",
        type=_size_or_none,
        default=argparse.SUPPRESS,
        help="input channels that share a scale; none is one scale a row (default 128)",
    )
    quantize.add_argument(
        "--size",
        type=float,
        metavar="BITS",
        help="mean bits a weight, scales included: bits and group size of each layer are chosen to fit it",
    )
    grid = quantize.add_mutually_exclusive_group()
    grid.add_argument("--symmetric", action="store_true", default=argparse.SUPPRESS)
    grid.add_argument(
        "--asymmetric",
        action="store_false",
        dest="symmetric",
        default=argparse.SUPPRESS,
        help="(default)",
    )
    quantize.add_argument(
        "--full-range",
        action=argparse.BooleanOptionalAction,
        help="with --symmetric: signed scales, which put a group's largest weight on the grid's longer "
        "side (default: with gptq)",
    )


def add_methods(quantize: argparse.ArgumentParser) -> None:
    """Add the methods' options, with the names, choices and defaults of `quantizer.Settings`."""
    from numbacalib.quantizer.settings import CHOICES, DEFAULTS

    quantize.add_argument(
        "--channel-scales", choices=CHOICES["channel_scales"], help="scale input channels first"
    )
    quantize.add_argument(
        "--awq-magnitude",
        choices=CHOICES["awq_magnitude"],
        help="magnitude of a channel's inputs that awq's scales are powers of (default %(default)s)",
    )
    quantize.add_argument(
        "--awq-weight-term",
        action="store_true",
        help="also divide awq's scales by a power of the channel's weights",
    )
    quantize.add_argument(
        "--ranges",
        choices=CHOICES["ranges"],
        help="range of each group's grid (default %(default)s: weighted with gptq, full with rtn)",
    )
    quantize.add_argument(
        "--range-norm",
        type=float,
        metavar="POWER",
        help="exponent of the errors that ranges mse and weighted minimize (default 2.4, at 2 bits 3)",
    )
    quantize.add_argument(
        "--target",
        choices=CHOICES["target"],
        help="propagated corrects in each layer the errors of the quantized layers before it: the text, or "
        "its first 32,768 tokens, also runs through the original model, which takes time and a second "
        "residual stream in memory (default %(default)s)",
    )
    quantize.add_argument(
        "--target-strength",
        type=float,
        metavar="SHARE",
        help="share of those errors to correct, 0 to 1: 1 fits the calibration text best (default "
        "%(default)s)",
    )
    quantize.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        help="solve for scales and zeros once the codes are known (default: with a propagated target)",
    )
    quantize.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="passes of coordinate descent over the codes of a row (default: 3 with a propagated target)",
    )
    quantize.add_argument(
        "--importance",
        type=Path,
        metavar="FILE",
        help="imatrix (GGUF) or Fisher information for --ranges weighted (default: from the text)",
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
    quantize.add_argument(
        "--percdamp",
        type=float,
        help="damping, as a share of the Hessian's mean diagonal (default %(default)s)",
    )
    quantize.add_argument(
        "--damping-tries",
        type=int,
        help="factorizations to try with growing damping; 1 never exceeds percdamp (default %(default)s)",
    )
    quantize.add_argument(
        "--shrinkage",
        type=_share_or_auto,
        metavar="SHARE",
        help="shrink Hessians toward their diagonal, 0 to 1, or auto by the number of tokens (default "
        "%(default)s)",
    )
    quantize.add_argument(
        "--max-fallbacks",
        type=float,
        metavar="SHARE",
        help="fail if a larger share of the layers needs more damping (default %(default)s)",
    )
    quantize.set_defaults(**{name: DEFAULTS[name] for name in SETTINGS if name not in GRID})


def add_run(quantize: argparse.ArgumentParser) -> None:
    """Add options of the run itself: its work directory, plan, proof and report."""
    quantize.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="directory of finished blocks until the output is complete (default: beside the output)",
    )
    quantize.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="report of the run, JSON; its settings are saved beside it, as .toml, for --config",
    )
    quantize.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options by name, TOML; the command line overrides them",
    )
    _add_proof(quantize)
    quantize.add_argument(
        "--plan",
        action="store_true",
        help="print the time, memory and disk space that the run needs, and end before its first block",
    )


def _add_proof(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument(
        "--held-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="text to evaluate the output on before it is renamed into place (default: a part of --text "
        "that calibration does not use)",
    )
    quantize.add_argument("--max-kl", type=float, metavar="NATS", help=MAX_KL)


def _size_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _share_or_auto(text: str) -> float | None:
    return None if text == "auto" else float(text)
