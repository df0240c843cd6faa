"""The command line: its commands, what they print and how they end."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import numbacalib
from numbacalib.config_file import with_config
from numbacalib.options import (
    BITS,
    EXAMPLES,
    EXITS,
    MAX_KL,
    TEXT,
    add_methods,
    add_proof,
    config_of,
    settings_of,
)
from numbacalib.terminal import (
    RejectedError,
    ending_signals,
    guarded_streams,
    reporting,
    silent,
)

if TYPE_CHECKING:
    from numbacalib.methods import LayerReport
    from numbacalib.quantizer import Settings
    from numbacalib.quantizer.plan import Plan

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
INPUT_ERRORS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ModuleNotFoundError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 is success, 2 an input that does not fit (argparse's own status), 1 a failure on the way (a full
    disk, a Hessian that cannot be factored, a NaN), 130 an interrupt, 143 SIGTERM and 129 a terminal
    that was closed. Each prints one line. A closed or full standard output or error ends no run; it is
    a failure only where what it was to show is all that the command does.
    """
    with guarded_streams() as output:
        try:
            options = _parser().parse_args(
                with_config(sys.argv[1:] if arguments is None else arguments)
            )
        except (ValueError, OSError) as error:
            return _fail(BAD_INPUT, error)
        logging.basicConfig(format="numbacalib: %(message)s", stream=sys.stderr)
        with ending_signals() as ignore_signals:
            try:
                with _quieted(options.quiet), suppress(_PlannedOnlyError):
                    options.run(options)
            except np.linalg.LinAlgError as error:  # a ValueError to Python
                return _fail(FAILED, error)
            except INPUT_ERRORS as error:
                return _fail(BAD_INPUT, error)
            except (OSError, MemoryError, FloatingPointError, RejectedError) as error:
                return _fail(FAILED, error)
            except RecursionError:
                return _fail(BAD_INPUT, "expected flat inputs, got one that is nested too deeply")
            except KeyboardInterrupt as error:
                ignore_signals()
                return _fail(getattr(error, "status", INTERRUPTED), str(error) or "interrupted")
        output.flush()
        if options.prints_result and output.lost:
            return _fail(FAILED, f"the result cannot be printed: standard output: {output.lost}")
    return 0


class _PlannedOnlyError(Exception):
    """The plan of a run was shown, and nothing else was asked for."""


@contextmanager
def _quieted(quiet: bool) -> Iterator[None]:
    """Print neither progress nor warnings inside the ``with`` statement, if so asked."""
    log = logging.getLogger("numbacalib")
    before, log.propagate = log.propagate, not quiet
    try:
        with reporting(silent if quiet else None):
            yield
    finally:
        log.propagate = before


def _fail(status: int, error: object) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"numbacalib: error: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numbacalib", description="Calibrate and quantize LLMs without torch.", epilog=EXITS
    )
    parser.add_argument(
        "--version", action="version", version=f"numbacalib {numbacalib.__version__}"
    )
    parser.set_defaults(prints_result=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quantize = commands.add_parser("quantize", help="quantize a model and write a checkpoint")
    quantize.set_defaults(run=_quantize)
    _add_model(quantize)
    source = quantize.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", type=Path, default=[], **TEXT)
    source.add_argument(
        "--statistics", type=Path, metavar="DIR", help="what collect wrote, instead of a text"
    )
    source.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="for ONNX models: .npz with an array for each input by its name, samples first",
    )
    quantize.add_argument(
        "--method",
        choices=("gptq", "rtn", "awq"),
        default="gptq",
        help="awq is rtn with --channel-scales awq and --ranges clip (default gptq)",
    )
    quantize.add_argument(
        "--bits",
        nargs="+",
        default=[BITS],
        metavar="N",
        help="2 to 8, or PATTERN=N for the layers whose names the pattern fits (default 4)",
    )
    quantize.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="layers that stay as they are, such as '*.down_proj' or 'model.layers.0.*'",
    )
    quantize.add_argument(
        "--group-size",
        type=_size_or_none,
        default=128,
        help="input channels that share a scale; none is one scale a row (default 128)",
    )
    grid = quantize.add_mutually_exclusive_group()
    grid.add_argument("--symmetric", action="store_true", default=False)
    grid.add_argument("--asymmetric", action="store_false", dest="symmetric", help="(default)")
    quantize.add_argument(
        "--format",
        nargs="+",
        metavar="NAME",
        help="of the output: compressed-tensors (default), gptq, gptq_v2, awq, mlx; onnx for ONNX models; "
        "of several, which must have a grid in common, each gets a directory of its name in the output",
    )
    add_methods(quantize)
    _add_samples(quantize)
    _add_output(quantize)
    quantize.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where finished blocks are kept until the output is complete (default: beside it)",
    )
    quantize.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="how the run went, JSON; its settings go beside it, as .toml, for --config",
    )
    quantize.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options by name, TOML; those of the command line go before them",
    )
    add_proof(quantize)
    quantize.add_argument(
        "--plan",
        action="store_true",
        help="print what the run will take, and end before its first block",
    )

    collect = commands.add_parser(
        "collect", help="save the statistics of a model's inputs, to quantize from more than once"
    )
    collect.set_defaults(run=_collect)
    _add_model(collect)
    collect.add_argument("--text", nargs="+", type=Path, required=True, **TEXT)
    _add_samples(collect)
    _add_output(collect)

    evaluate = commands.add_parser("evaluate", help="print a model's perplexity on a text")
    evaluate.set_defaults(run=_evaluate, prints_result=True)
    _add_model(evaluate)
    evaluate.add_argument("--text", nargs="+", type=Path, required=True, metavar="FILE")
    evaluate.add_argument("--samples", type=int, help="sequences (default: the whole text)")
    _add_length(evaluate)
    evaluate.add_argument(
        "--against", type=Path, metavar="MODEL", help="the original, for the KL divergence from it"
    )
    evaluate.add_argument("--json", action="store_true", help="print all that was found as JSON")

    verify = commands.add_parser(
        "verify", help="read all of a quantized checkpoint, and compare it with its original"
    )
    verify.set_defaults(run=_verify, prints_result=True)
    _add_model(verify)
    verify.add_argument("--against", type=Path, metavar="MODEL", help="the original")
    verify.add_argument(
        "--text", nargs="+", type=Path, default=[], metavar="FILE", help="to evaluate on"
    )
    verify.add_argument("--max-kl", type=float, metavar="NATS", help=MAX_KL)
    verify.add_argument("--samples", type=int, help="sequences (default: the whole text)")
    _add_length(verify)

    convert = commands.add_parser(
        "convert", help="write a quantized checkpoint in another format, without loss"
    )
    convert.set_defaults(run=_convert)
    convert.add_argument("model", type=Path, help="quantized directory or GGUF file")
    convert.add_argument("--format", required=True, metavar="NAME", help="of the output")
    _add_output(convert)

    demo = commands.add_parser(
        "demo", help="fetch SmolLM2-135M, quantize it to 4 and 3 bits, compare perplexities"
    )
    demo.set_defaults(run=_demo)
    _add_device(demo)
    demo.add_argument("--output", type=Path, default=Path("smollm2-135m-gptq"), metavar="DIR")

    warm_up = commands.add_parser(
        "warm-up", help="compile the CPU's kernels ahead, which are then kept on disk"
    )
    warm_up.set_defaults(run=_warm_up)
    warm_up.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="of inputs and weights (default: all but float64)",
    )
    for name, command in commands.choices.items():
        _add_verbosity(command)
        if name in EXAMPLES:
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            command.epilog = f"examples:{EXAMPLES[name]}\n\n{EXITS}"
    return parser


def _add_verbosity(command: argparse.ArgumentParser) -> None:
    amount = command.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print errors and results alone")
    amount.add_argument("-v", "--verbose", action="store_true", help="print more: every layer")


def _size_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=int, default=64, help="calibration sequences (default 64)"
    )
    _add_length(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new, or an empty directory"
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove what killed runs to the same output left, and begin anew",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="Hugging Face directory or hub id, or GGUF file")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, or auto: a GPU where there is one (default auto)",
    )


def _add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sequence-length", type=int, default=512, help="tokens of a sequence (default 512)"
    )


def _quantize(options: argparse.Namespace) -> None:
    from numbacalib.quantizer import quantize, report

    if options.report:
        report.require_writable(options.report, options.output)
    settings = settings_of(options)
    if options.model.suffix == ".onnx":
        layers = _quantize_onnx(options, settings)
        print(report.layer_table(layers))
        print(f"written to {options.output}")
        if options.report:
            report.save_layers(options.report, layers)
        return
    if options.calibration:
        raise ValueError("calibration: expected an ONNX model with it; others take --text")

    def show(plan: Plan) -> None:
        if options.plan or not options.quiet:
            print(plan.summary(), flush=True)
        if options.plan:
            raise _PlannedOnlyError

    found = quantize(
        options.model,
        options.output,
        text=options.text,
        statistics=options.statistics,
        importance=options.importance,
        settings=settings,
        formats=options.format or ["compressed-tensors"],
        device=options.device,
        held_out=options.held_out,
        max_kl=options.max_kl,
        clean=options.clean,
        work=options.work,
        planned=show,
    )
    if options.verbose:
        print(report.layer_table(found.layers))
    if not options.quiet:
        print(found.summary())
        print(f"written to {options.output}")
    if options.report:
        try:
            found.save(options.report)
            if options.report.suffix == ".json":
                report.write_config(options.report.with_suffix(".toml"), config_of(options))
        except OSError as error:
            raise OSError(f"{error}; the checkpoint in {options.output} is whole") from error


def _quantize_onnx(options: argparse.Namespace, settings: Settings) -> list[LayerReport]:
    from numbacalib.quantizer import quantize_onnx

    if options.format not in (None, ["onnx"]):
        raise ValueError(f"format: expected onnx for an ONNX model, got {' '.join(options.format)}")
    if settings.layer_bits:
        raise ValueError("bits: expected one number with an ONNX model, got patterns of layers")
    for name in ("text", "statistics", "importance", "skip", "held_out", "max_kl", "work"):
        if getattr(options, name):
            raise ValueError(f"{name}: expected none with an ONNX model, which takes --calibration")
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"device: expected cpu with an ONNX model, got {options.device!r}")
    return quantize_onnx(
        options.model,
        options.output,
        calibration=options.calibration,
        settings=settings,
        clean=options.clean,
    )


def _collect(options: argparse.Namespace) -> None:
    from numbacalib.quantizer import collect

    collect(
        options.model,
        options.output,
        text=options.text,
        samples=options.samples,
        sequence_length=options.sequence_length,
        device=options.device,
        clean=options.clean,
    )
    print(f"written to {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    from numbacalib.quantizer import evaluate
    from numbacalib.quantizer.report import evaluation_line

    result = evaluate(
        options.model,
        options.text,
        sequence_length=options.sequence_length,
        samples=options.samples,
        device=options.device,
        against=options.against,
    )
    if math.isinf(result.perplexity):
        raise FloatingPointError(
            f"{options.model}: a perplexity beyond float64, the loss is {result.loss:.4g} nats a token"
        )
    if options.json:
        print(json.dumps(asdict(result) | {"perplexity": result.perplexity}, indent=2))
    else:
        print(evaluation_line(result))


def _verify(options: argparse.Namespace) -> None:
    from numbacalib.quantizer import verify
    from numbacalib.quantizer.report import evaluation_line

    found = verify(
        options.model,
        against=options.against,
        text=options.text,
        max_kl=options.max_kl,
        sequence_length=options.sequence_length,
        samples=options.samples,
        device=options.device,
    )
    print(f"{found.quantized} quantized layers are read")
    if options.against:
        print(f"{found.copied} tensors are the original's, {len(found.changed)} are changed")
        for name in found.changed[: None if options.verbose else 5]:
            print(f"changed: {name}")
        for name, reason in found.dropped.items():
            print(f"left out: {name}: {reason}")
    if found.evaluation:
        print(evaluation_line(found.evaluation))


def _convert(options: argparse.Namespace) -> None:
    from numbacalib.quantizer import convert

    grids = convert(options.model, options.output, to=options.format, clean=options.clean)
    print(f"{len(grids)} layers written to {options.output}, with the same weights to the bit")


def _demo(options: argparse.Namespace) -> None:
    from numbacalib import demo

    demo.run(options.output, options.device)


def _warm_up(options: argparse.Namespace) -> None:
    from numbacalib.warm_up import warm_up

    warm_up(options.dtypes)


if __name__ == "__main__":
    sys.exit(main())
