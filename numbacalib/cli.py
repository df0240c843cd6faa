"""The command line: ``numbacalib quantize``, ``collect``, ``evaluate``, ``demo`` and ``warm-up``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numbacalib.terminal import ending_signals, guarded_streams

if TYPE_CHECKING:
    from numbacalib.methods import LayerReport
    from numbacalib.quantizer import Settings

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
EXITS = (
    "Exit status: 0 done, 1 failed on the way, 2 an input does not fit, 130 interrupted, "
    "143 ended by SIGTERM, 129 terminal closed."
)
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
TEXT: dict[str, Any] = {"metavar": "FILE", "help": "calibration text"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 is success, 2 an input that does not fit (argparse's own status), 1 a failure on the way (a full
    disk, a Hessian that cannot be factored, a NaN), 130 an interrupt, 143 SIGTERM and 129 a terminal
    that was closed. Each prints one line. A closed or full standard output or error ends no run; it is
    a failure only where what it was to show is all that the command does.
    """
    with guarded_streams() as output:
        options = _parser().parse_args(arguments)
        logging.basicConfig(format="numbacalib: %(message)s", stream=sys.stderr)
        with ending_signals() as ignore_signals:
            try:
                options.run(options)
            except np.linalg.LinAlgError as error:  # a ValueError to Python
                return _fail(FAILED, error)
            except INPUT_ERRORS as error:
                return _fail(BAD_INPUT, error)
            except (OSError, MemoryError, FloatingPointError) as error:
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


def _fail(status: int, error: object) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"numbacalib: error: {text}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numbacalib", description="Calibrate and quantize LLMs without torch.", epilog=EXITS
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
    quantize.add_argument("--method", choices=("gptq", "rtn"), default="gptq")
    quantize.add_argument("--bits", type=int, default=4, help="2 to 8 (default 4)")
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
    _add_methods(quantize)
    _add_samples(quantize)
    _add_output(quantize)
    quantize.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where finished blocks are kept until the output is complete (default: beside it)",
    )
    quantize.add_argument("--report", type=Path, metavar="FILE", help="how the layers went, JSON")

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
    return parser


def _add_methods(quantize: argparse.ArgumentParser) -> None:
    """Options of the methods: names and defaults are those of `quantizer.Settings`."""
    quantize.add_argument(
        "--channel-scales", choices=("none", "awq"), default="none", help="scale channels first"
    )
    quantize.add_argument(
        "--awq-magnitude",
        choices=("mean", "max"),
        default="mean",
        help="of a channel's absolute inputs, what awq's scales are powers of (default mean)",
    )
    quantize.add_argument(
        "--awq-weight-term",
        action="store_true",
        help="let awq's scales also fall with the channel's weights",
    )
    quantize.add_argument(
        "--ranges",
        choices=("auto", "full", "mse", "weighted", "clip"),
        default="auto",
        help="what each group's grid spans (default auto: weighted with gptq, full with rtn)",
    )
    quantize.add_argument(
        "--range-norm",
        type=float,
        metavar="POWER",
        help="power of the errors that ranges mse and weighted sum (default 2.4, at 2 bits 3)",
    )
    quantize.add_argument(
        "--target",
        choices=("layerwise", "propagated"),
        default="layerwise",
        help="propagated repairs in each layer what the quantized ones before it spoilt: the text runs "
        "through the original model too, in twice the time, with a second residual stream in memory "
        "(default layerwise)",
    )
    quantize.add_argument(
        "--target-strength",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="how far to repair, 0 to 1: the full way fits the calibration text best (default 0.25)",
    )
    quantize.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        default=False,
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
        choices=("none", "desc", "group_aware"),
        default="desc",
        help="order of the columns in gptq (default desc, which needs static groups)",
    )
    quantize.add_argument(
        "--static-groups",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="find all scales before any column is compensated (default)",
    )
    quantize.add_argument("--percdamp", type=float, default=0.01, help="damping (default 0.01)")
    quantize.add_argument(
        "--damping-tries",
        type=int,
        default=5,
        help="1 fails where percdamp does not do (default 5)",
    )
    quantize.add_argument(
        "--shrinkage",
        type=_share_or_auto,
        default=0.0,
        metavar="SHARE",
        help="shrink Hessians toward their diagonal, 0 to 1 or auto: for few tokens (default 0)",
    )
    quantize.add_argument(
        "--max-fallbacks",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="fail where more of the layers need more damping (default 0.1)",
    )


def _size_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _share_or_auto(text: str) -> float | None:
    return None if text == "auto" else float(text)


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
    parser.add_argument("model", type=Path, help="Hugging Face directory or GGUF file")
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
    from numbacalib.quantizer import Settings, quantize, report

    settings = Settings(
        method=options.method,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        channel_scales=options.channel_scales,
        awq_magnitude=options.awq_magnitude,
        awq_weight_term=options.awq_weight_term,
        ranges=options.ranges,
        range_norm=options.range_norm,
        target=options.target,
        target_strength=options.target_strength,
        refit=options.refit,
        act_order=options.act_order,
        static_groups=options.static_groups,
        percdamp=options.percdamp,
        damping_tries=options.damping_tries,
        shrinkage=options.shrinkage,
        max_fallbacks=options.max_fallbacks,
        samples=options.samples,
        sequence_length=options.sequence_length,
    )
    if options.report:
        report.require_writable(options.report, options.output)
    if options.model.suffix == ".onnx":
        layers = _quantize_onnx(options, settings)
    else:
        if options.calibration:
            raise ValueError("calibration: expected an ONNX model with it; others take --text")
        layers = quantize(
            options.model,
            options.output,
            text=options.text,
            statistics=options.statistics,
            importance=options.importance,
            settings=settings,
            formats=options.format or ["compressed-tensors"],
            device=options.device,
            clean=options.clean,
            work=options.work,
        )
    print(report.layer_table(layers))
    print(f"written to {options.output}")
    if options.report:
        try:
            report.save_layers(options.report, layers)
        except OSError as error:
            raise OSError(f"{error}; the checkpoint in {options.output} is whole") from error


def _quantize_onnx(options: argparse.Namespace, settings: Settings) -> list[LayerReport]:
    from numbacalib.quantizer import quantize_onnx

    if options.format not in (None, ["onnx"]):
        raise ValueError(f"format: expected onnx for an ONNX model, got {' '.join(options.format)}")
    for name in ("text", "statistics", "importance"):
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

    result = evaluate(
        options.model,
        options.text,
        sequence_length=options.sequence_length,
        samples=options.samples,
        device=options.device,
    )
    if math.isinf(result.perplexity):
        raise FloatingPointError(
            f"{options.model}: a perplexity beyond float64, the loss is {result.loss:.4g} nats a token"
        )
    print(f"perplexity {result.perplexity:.4f} over {result.tokens} tokens")


def _demo(options: argparse.Namespace) -> None:
    from numbacalib import demo

    demo.run(options.output, options.device)


def _warm_up(options: argparse.Namespace) -> None:
    from numbacalib.warm_up import warm_up

    warm_up(options.dtypes)


if __name__ == "__main__":
    sys.exit(main())
