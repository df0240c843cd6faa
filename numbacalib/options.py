"""Commands and options of the command line, with their help texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numbacalib
from numbacalib.quantize_options import MAX_KL, TEXT, add_grid, add_methods, add_run, add_source

EXITS = (
    "Exit status: 0 done, 1 failed during the run, 2 invalid input, 130 interrupted, "
    "143 ended by SIGTERM, 129 terminal closed."
)
EXAMPLES = {
    "quantize": """
  numbacalib quantize MODEL --text calibration.txt --output quantized/
  numbacalib quantize HuggingFaceTB/SmolLM2-135M --text chats.jsonl --output q4/
  numbacalib quantize MODEL --text calibration.txt --symmetric --bits 3 '*.down_proj=4' --output q3/
  numbacalib quantize MODEL --method rtn --skip 'model.layers.0.*' --output rounded/
  numbacalib quantize --config run.toml --output again/""",
    "collect": """
  numbacalib collect MODEL --text calibration.txt --output statistics/""",
    "evaluate": """
  numbacalib evaluate quantized/ --text held-out.txt --against MODEL --json""",
    "verify": """
  numbacalib verify quantized/ --against MODEL --text held-out.txt --max-kl 0.1""",
    "report": """
  numbacalib report run.json --output run.html
  numbacalib report run.json --json""",
    "convert": """
  numbacalib convert quantized/ --format mlx --output converted/""",
}


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, which stores the subcommand's name as ``command``."""
    parser = argparse.ArgumentParser(
        prog="numbacalib", description="Calibrate and quantize LLMs without torch.", epilog=EXITS
    )
    parser.add_argument(
        "--version", action="version", version=f"numbacalib {numbacalib.__version__}"
    )
    parser.set_defaults(prints_result=False, json=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_quantize(commands)
    _add_collect(commands)
    _add_evaluate(commands)
    _add_verify(commands)
    _add_convert(commands)
    _add_report(commands)
    _add_demo(commands)
    _add_warm_up(commands)
    for name, command in commands.choices.items():
        _add_verbosity(command)
        if name in EXAMPLES:
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            command.epilog = f"examples:{EXAMPLES[name]}\n\n{EXITS}"
    return parser


def _add_quantize(commands: Any) -> None:
    quantize = commands.add_parser("quantize", help="quantize a model and write a checkpoint")
    _add_model(quantize, "Hugging Face directory or hub id, GGUF file, or ONNX model")
    add_source(quantize)
    quantize.add_argument(
        "--method",
        choices=("gptq", "rtn", "awq"),
        default="gptq",
        help="awq is rtn with --channel-scales awq and --ranges clip (default gptq)",
    )
    add_grid(quantize)
    quantize.add_argument(
        "--format",
        nargs="+",
        metavar="NAME",
        help="output formats: compressed-tensors (default), nvfp4, mxfp4, gptq, gptq_v2, awq, mlx, "
        "mlx:nvfp4, mlx:mxfp4, gguf:Q4_K_M and other mixes; onnx, onnx:float (real zero points) or "
        "onnx:qdq for ONNX models; several must share a grid, and each gets a directory of its name in "
        "the output",
    )
    quantize.add_argument(
        "--lm-head",
        action="store_true",
        help="also quantize the output head, calibrated on the final norm's outputs, if the format stores "
        "it; a tied head together with the embeddings",
    )
    quantize.add_argument(
        "--embeddings",
        action="store_true",
        help="also round the embeddings, if the format stores them (mlx)",
    )
    add_methods(quantize)
    _add_samples(quantize)
    _add_output(quantize)
    add_run(quantize)


def _add_collect(commands: Any) -> None:
    collect = commands.add_parser(
        "collect", help="save the statistics of the layers' inputs, to quantize from more than once"
    )
    _add_model(collect)
    collect.add_argument("--text", nargs="+", type=Path, required=True, **TEXT)
    _add_samples(collect)
    _add_output(collect)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="print a model's perplexity on a text")
    evaluate.set_defaults(prints_result=True)
    _add_model(evaluate)
    evaluate.add_argument("--text", nargs="+", type=Path, required=True, metavar="FILE")
    evaluate.add_argument("--samples", type=int, help="sequences (default: the whole text)")
    _add_length(evaluate)
    evaluate.add_argument(
        "--against", type=Path, metavar="MODEL", help="the original, for the KL divergence from it"
    )
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify", help="read a whole quantized checkpoint, and compare it with its original"
    )
    verify.set_defaults(prints_result=True)
    _add_model(verify)
    verify.add_argument("--against", type=Path, metavar="MODEL", help="the original")
    verify.add_argument(
        "--text", nargs="+", type=Path, default=[], metavar="FILE", help="text to evaluate on"
    )
    verify.add_argument("--max-kl", type=float, metavar="NATS", help=MAX_KL)
    verify.add_argument("--samples", type=int, help="sequences (default: the whole text)")
    _add_length(verify)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert", help="write a quantized checkpoint in another format, without loss"
    )
    convert.add_argument("model", type=Path, help="quantized directory or GGUF file")
    convert.add_argument("--format", required=True, metavar="NAME", help="output format")
    _add_output(convert)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report", help="turn the JSON of quantize --report into a page, one HTML file with charts"
    )
    report.add_argument("run", type=Path, help="JSON of quantize --report")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="the page; replaced if it exists"
    )
    report.add_argument("--json", action="store_true", help="print the page's data as JSON")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="fetch SmolLM2-135M, quantize it to 4 and 3 bits, compare perplexities"
    )
    _add_device(demo)
    demo.add_argument("--output", type=Path, default=Path("smollm2-135m-gptq"), metavar="DIR")


def _add_warm_up(commands: Any) -> None:
    warm_up = commands.add_parser(
        "warm-up", help="compile the CPU kernels ahead of time, and cache them on disk"
    )
    warm_up.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="dtypes of inputs and weights (default: all but float64)",
    )


def _add_verbosity(command: argparse.ArgumentParser) -> None:
    amount = command.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="print only errors and results")
    amount.add_argument("-v", "--verbose", action="store_true", help="also print every layer")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=int, default=64, help="calibration sequences (default 64)"
    )
    parser.add_argument(
        "--own-text",
        type=float,
        metavar="SHARE",
        help="share of these that the model writes itself instead of the text's, for other kinds of text "
        "(default 0.25, and none with experts)",
    )
    _add_length(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new, or an empty directory"
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="remove the files that killed runs left for the same output, and start over",
    )


def _add_model(
    parser: argparse.ArgumentParser, what: str = "Hugging Face directory or hub id, or GGUF file"
) -> None:
    parser.add_argument("model", type=Path, help=what)
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, or auto: a GPU if there is one (default auto)",
    )


def _add_length(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sequence-length", type=int, default=512, help="tokens per sequence (default 512)"
    )
