"""GGUF files of one size: ours against llama.cpp's own quantizer with the same importance.

    NUMBACALIB_LIBLLAMA=.../libllama.so python benchmarks/gguf_quality.py MODEL --name NAME

Both start from the same weights and see the same calibration text: its mean squares are llama.cpp's
importance matrix. llama.cpp scores all files, by its logits on later messages of presidents: perplexity,
and KL from its results for the original in float32. MODEL is a directory or a GGUF file, or the
name of one of `small_models`, such as SmolLM2-135M, whose rows are not whole blocks of 256; those of the
model of ``python benchmarks/trained.py llama FOLDER`` are. Writes ``results/gguf-NAME-<machine>.csv``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import describe_machine, write_csv
from numpy.typing import NDArray
from report import parser, report
from small_models import checkpoint_of_glassllm, file_of_smollm2
from tables import GgufRow

from numbacalib import demo
from numbacalib.formats import read_imatrix
from numbacalib.formats.gguf_metadata import architecture_of, model_metadata, rope_tensors
from numbacalib.formats.gguf_mixes import file_type
from numbacalib.formats.gguf_vocabulary import vocabulary_metadata
from numbacalib.formats.gguf_writer import GGUFWriter, PlannedTensor, encoded
from numbacalib.models import Checkpoint, open_checkpoint
from numbacalib.models.gguf import GGUFCheckpoint
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_layouts import row_order
from numbacalib.models.gguf_names import gguf_name
from numbacalib.models.gguf_types import type_named
from numbacalib.quantizer import collect, quantize
from numbacalib.quantizer.text import read_sequences

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from clients.llama_cpp.libllama import Llama, Model

MIXES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q4_0")
CALIBRATED, EVALUATED = range(1930, 1991), range(1991, 2027)
OURS: dict[str, dict[str, Any]] = {
    "numbacalib, GPTQ": {"target": "layerwise"},
    "numbacalib, propagated": {"target": "propagated"},
    "numbacalib, round-to-nearest": {"method": "rtn", "ranges": "weighted"},
}
THEIRS = "llama-quantize with imatrix"
PATHS = {"glassllm": checkpoint_of_glassllm, "SmolLM2-135M": file_of_smollm2}


def plain_file(checkpoint: Checkpoint, path: Path) -> None:
    """Write the original's weights as llama.cpp's converter does with ``--outtype f32``.

    So are those of a GGUF file, since llama.cpp's quantizer copies tensors that have the target type.
    """
    kind, config = type_named("F32"), checkpoint.config
    paired, arrays = GGUF_ARCHITECTURES[architecture_of(config)].paired, {}
    for name in checkpoint.names():
        values = checkpoint.tensor(name).astype(np.float32)
        order = row_order(config, name, paired=paired)
        arrays[gguf_name(name)] = values if order is None else values[order]
    arrays |= rope_tensors(config)
    planned = {name: PlannedTensor(kind, values.shape) for name, values in arrays.items()}
    with GGUFWriter(path, _entries(checkpoint), planned) as writer:
        for name, values in arrays.items():
            writer.add(name, values.view(np.uint8).ravel())


def _entries(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the metadata of a file in float32."""
    if isinstance(checkpoint, GGUFCheckpoint):
        return checkpoint.metadata_bytes() | {"general.file_type": encoded(0)}
    metadata = model_metadata(checkpoint) | vocabulary_metadata(checkpoint)
    return {key: encoded(value) for key, value in metadata.items()}


def log_probabilities(
    llama: Llama, file: Path, sequences: NDArray[np.integer]
) -> list[NDArray[np.float32]]:
    """Log-probabilities of llama.cpp's predictions after each token of each sequence."""
    found = []
    threads = len(os.sched_getaffinity(0))
    with Model(llama, file, sequences.shape[1], threads) as model:
        for tokens in sequences:
            logits = model.logits(tokens).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found.append(logits.astype(np.float32))
    return found


def scored(
    mix: str, who: str, file: Path, own: list[NDArray], original: list[NDArray], tokens: NDArray
) -> GgufRow:
    """Compare a file's predictions with the original's."""
    losses, kls = [], []
    for mine, theirs, sequence in zip(own, original, tokens, strict=True):
        losses.append(-mine[np.arange(len(sequence) - 1), sequence[1:]].mean(dtype=np.float64))
        kls.append((np.exp(theirs) * (theirs - mine)).sum(axis=1, dtype=np.float64).mean())
    error = float(np.std(kls, ddof=1) / len(kls) ** 0.5)
    perplexity = float(np.exp(np.mean(losses)))
    row = GgufRow(mix, who, file.stat().st_size / 1e6, perplexity, float(np.mean(kls)), error)
    print(f"{mix}, {who}: perplexity {perplexity:.3f}, KL {row.kl:.5f} ± {error:.5f}", flush=True)
    return row


def main() -> int:
    """Quantize, score, and write the CSV."""
    options = parser(__doc__)
    options.add_argument("model")
    options.add_argument("--name", required=True, help="of the model, for the name of the CSV")
    options.add_argument("--samples", type=int, default=64, help="calibration sequences")
    options.add_argument("--sequences", type=int, default=24, help="sequences to score")
    options.add_argument("--length", type=int, default=256)
    options.add_argument("--mixes", nargs="+", default=MIXES)
    given = options.parse_args()
    model = PATHS[given.model]() if given.model in PATHS else Path(given.model)
    llama, checkpoint = Llama(), open_checkpoint(model)
    text = demo.speeches(CALIBRATED)
    sampled: dict[str, Any] = {"samples": given.samples, "sequence_length": given.length}
    tokens = read_sequences(checkpoint, demo.speeches(EVALUATED), given.length, given.sequences)
    rows: list[GgufRow] = []
    with tempfile.TemporaryDirectory(prefix="numbacalib-") as scratch:
        folder = Path(scratch)
        original = folder / "original.gguf"
        plain_file(checkpoint, original)
        collect(model, folder / "statistics", text=text, **sampled)
        means = read_imatrix(folder / "statistics" / "imatrix.gguf")
        importance = {gguf_name(f"{name}.weight"): mean for name, mean in means.items()}
        expected = log_probabilities(llama, original, tokens)
        rows.append(scored("F32", "original", original, expected, expected, tokens))
        for mix in given.mixes:
            target = folder / f"{mix}.gguf"
            llama.quantize(original, target, file_type(mix), importance)
            files = {THEIRS: target}
            for number, (who, settings) in enumerate(OURS.items()):
                output = folder / f"{mix}-{number}"
                own = sampled | settings
                quantize(model, output, text=text, formats=[f"gguf:{mix}"], **own)
                files[who] = output / f"model-{mix}.gguf"
            for who, file in files.items():
                found = log_probabilities(llama, file, tokens)
                rows.append(scored(mix, who, file, found, expected, tokens))
            written = _write(given, tokens, rows)  # an interrupted run keeps its rows
    return report(written, docs=given.docs)


def _write(given: argparse.Namespace, tokens: NDArray[np.integer], rows: list[GgufRow]) -> Path:
    calibrated = f"calibrated on {given.samples * given.length} tokens"
    scored_on = f"{tokens.size} scored by llama.cpp"
    facts = {"evaluation": f"{given.name}, {calibrated}, {scored_on}"}
    return write_csv(f"gguf-{given.name}", describe_machine("numba", "numpy", **facts), rows)


if __name__ == "__main__":
    sys.exit(main())
