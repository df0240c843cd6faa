# PYTHON_ARGCOMPLETE_OK
"""Command line: its commands, their output and their exit status."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from numbacalib.config_file import config_of, settings_of, with_config
from numbacalib.options import command_parser
from numbacalib.runtime.extras import extra
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

ONNX_FORMATS: dict[str, dict[str, Any]] = {
    "onnx": {},
    "onnx:float": {"float_zeros": True},
    "onnx:qdq": {"operator": "DequantizeLinear"},
}
"""Options of `quantize_onnx` by format name."""
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

    0 is success, 2 an invalid input (argparse's own status), 1 a failure during the run (a full disk,
    a Hessian that cannot be factored, a NaN), 130 an interrupt, 143 SIGTERM and 129 a closed terminal.
    Each error prints one line. A closed or full standard output or error does not end a run; it is a
    failure only for a command whose purpose is to print a result.
    """
    parser = command_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions; this ends the process
        with extra("completion"):
            import argcomplete
        argcomplete.autocomplete(parser)
    with guarded_streams() as output:
        try:
            options = parser.parse_args(
                with_config(sys.argv[1:] if arguments is None else arguments)
            )
        except (ValueError, OSError) as error:
            return _fail(BAD_INPUT, error)
        logging.basicConfig(format="numbacalib: %(message)s", stream=sys.stderr)
        if sys.__stderr__ is not None:
            with suppress(OSError, ValueError):  # closed
                faulthandler.enable(sys.__stderr__)  # a crash in native code prints a traceback
        with ending_signals() as ignore_signals:
            try:
                with _quieted(options.quiet), suppress(_PlannedOnlyError):
                    _COMMANDS[options.command](options)
            except np.linalg.LinAlgError as error:  # a subclass of ValueError
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
        if (options.prints_result or options.json) and output.lost:
            return _fail(FAILED, f"the result cannot be printed: standard output: {output.lost}")
    return 0


class _PlannedOnlyError(Exception):
    """Ends a run with ``--plan`` once the plan was shown."""


@contextmanager
def _quieted(quiet: bool) -> Iterator[None]:
    """Print neither progress nor warnings inside the ``with`` statement if `quiet`."""
    log = logging.getLogger("numbacalib")
    before, log.propagate = log.propagate, not quiet
    nowhere = logging.NullHandler()  # without a handler, Python prints warnings to stderr
    log.addHandler(nowhere)
    try:
        with reporting(silent if quiet else None):
            yield
    finally:
        log.removeHandler(nowhere)
        log.propagate = before


def _fail(status: int, error: object) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:  # raised by the system
        text = f"{error.filename}: {error.strerror}"
    print(f"numbacalib: error: {text}", file=sys.stderr)
    return status


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
        raise ValueError("calibration: expected with an ONNX model only; others take --text")

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

    form, *others = options.format or ["onnx"]
    if others or form not in ONNX_FORMATS:
        expected = " or ".join(ONNX_FORMATS)
        raise ValueError(
            f"format: expected {expected} for an ONNX model, got {' '.join(options.format)}"
        )
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
        **ONNX_FORMATS[form],
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
        own_text=options.own_text,
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
            f"{options.model}: perplexity overflows float64, the loss is {result.loss:.4g} nats a token"
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


def _report(options: argparse.Namespace) -> None:
    from numbacalib.quantizer.page import read_report, write_page

    if not (options.output or options.json):
        raise ValueError("output: expected a file for the page or --json, got neither")
    found = read_report(options.run)
    if options.json:
        print(json.dumps(found, indent=2))
    if options.output:
        write_page(found, options.output)
        if not options.json:
            print(f"written to {options.output}")


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


_COMMANDS = {
    "quantize": _quantize,
    "collect": _collect,
    "evaluate": _evaluate,
    "verify": _verify,
    "convert": _convert,
    "report": _report,
    "demo": _demo,
    "warm-up": _warm_up,
}


if __name__ == "__main__":
    sys.exit(main())
