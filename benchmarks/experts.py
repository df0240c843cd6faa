"""Experts: equal layers solved together, tokens used for calibration, and the memory of a large model.

    python benchmarks/experts.py [together] [tokens] [memory] [--docs]

- together: `gptq_batch` against `gptq` of one expert after the other, interleaved.
- tokens: a small model of experts is trained here, by torch and transformers; it is calibrated on the
  tokens that its routers send to each expert, and on all of them, and evaluated on another text.
- memory: a block or two with the shapes of Qwen3-30B-A3B and random weights, through the whole quantizer.

Writes ``results/experts-<machine>.csv``; parts that are not named keep their earlier rows.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from harness import Case, csv_file, describe_machine, measure, read_csv, write_csv
from report import parser, report
from tables import ExpertsRow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from numbacalib.formats import SafetensorsWriter
from numbacalib.methods import RangeSearch, gptq, gptq_batch
from numbacalib.quantizer import evaluate, quantize

ROOT = Path(__file__).parent.parent
PACKAGES = ("numba", "numpy")
TOGETHER, ALONE = "together", "one by one"
SIZES = ((8, 768, 2048), (8, 2048, 768), (32, 256, 512))
"""Experts, M and K: of Qwen3-30B-A3B, and smaller ones."""

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 256,
}
LENGTH, BATCH = 128, 8
SAMPLES = (8, 128)
LARGE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 512,
}
LAYERS = 48
"""Of the model with the shapes of `LARGE`."""


def text_files() -> list[Path]:
    """Available English text: this project's documents."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def write_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE on the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(file) for file in text_files()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def together() -> Iterator[ExpertsRow]:
    """Time equal layers together and one by one, on the same arrays."""
    options: dict[str, Any] = {
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
        "search": RangeSearch(),
        "act_order": "desc",
        "static_groups": True,
    }
    rng = np.random.default_rng(0)
    for count, rows, channels in SIZES:
        weights = rng.normal(size=(count, rows, channels)).astype(np.float32)
        inputs = rng.normal(size=(count, 2 * channels, channels)).astype(np.float32)
        hessians = inputs.swapaxes(1, 2) @ inputs / channels
        squares = np.stack([np.diagonal(hessian) for hessian in hessians])
        layers = list(zip(weights, hessians, squares, strict=True))

        def batch(given: Any = (weights, hessians, squares)) -> Any:
            return gptq_batch(*given[:2], importance=given[2], **options)

        def alone(given: Any = layers) -> Any:
            return [gptq(w, h, importance=square, **options) for w, h, square in given]

        case = Case("GPTQ", "", "float32", 1.0, "", {TOGETHER: batch, ALONE: alone})
        ours, theirs = measure(case, rounds=7, budget=60)
        load = os.getloadavg()[0]
        yield ExpertsRow(
            "GPTQ of equal experts, a layer",
            f"{count} of {rows} x {channels}",
            f"{1e3 * ours.seconds / count:.1f} ms together, {1e3 * theirs.seconds / count:.1f} ms one by "
            f"one; least {1e3 * ours.fastest / count:.1f} and {1e3 * theirs.fastest / count:.1f} ms; "
            f"{load:.0f} other threads ran",
        )


def train(folder: Path, steps: int) -> None:
    """Train a model of experts on the documents, and write its checkpoint."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = write_tokenizer(folder, 512)
    files = text_files()[:-1]
    ids = np.concatenate([tokenizer.encode(file.read_text()).ids for file in files])
    stream = torch.tensor(ids)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=512, **SMALL, output_router_logits=True)
    model = Qwen3MoeForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(0, len(stream) - LENGTH, (BATCH,))
        batch = torch.stack([stream[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


def tokens(folder: Path, steps: int) -> Iterator[ExpertsRow]:
    """Calibrate a trained model on the tokens of each expert, or on all."""
    model = folder / "model"
    model.mkdir()
    train(model, steps)
    *files, held_out = text_files()
    options: dict[str, Any] = {"bits": 3, "group_size": 32, "symmetric": True}
    for samples in SAMPLES:
        for experts in ("routed", "all", "rounded to nearest"):
            output = folder / f"{experts}-{samples}"
            given: dict[str, Any] = {"text": files, "experts": experts, "samples": samples}
            if experts == "rounded to nearest":
                given = {"method": "rtn"}
            found = quantize(model, output, **options, **given, sequence_length=LENGTH)
            result = evaluate(output, [held_out], sequence_length=LENGTH, against=model)
            layers = [layer for layer in found.layers if ".experts." in layer.name]
            remedied = sum(layer.remedy is not None for layer in layers)
            yield ExpertsRow(
                f"3 bits, calibrated on {samples * LENGTH} tokens",
                experts,
                f"KL to the original {result.kl:.4f} ± {result.kl_error:.4f} nats, "
                f"{found.seconds['quantizing']:.1f} s, {remedied} of {len(layers)} layers with a remedy",
            )


def write_large(folder: Path, layers: int) -> None:
    """Write blocks of random weights with the shapes of `LARGE`, bfloat16."""
    from numbacalib.models import ModelConfig
    from numbacalib.models.layer_tensors import (
        EMBEDDINGS,
        HEAD,
        expert_shapes,
        linear_shapes,
        outer_shapes,
        vector_shapes,
    )

    folder.mkdir()
    config = LARGE | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, LARGE["vocab_size"])
    read = ModelConfig.from_hf(config)
    table = (read.vocab_size, read.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDINGS: table,
        HEAD: table,
        **outer_shapes(read),
    }
    for index in range(layers):
        for part in (linear_shapes, vector_shapes, expert_shapes):
            own = part(read, index)
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in own.items()}
    rng = np.random.default_rng(0)
    with SafetensorsWriter(folder) as writer:
        for name, shape in shapes.items():
            drawn = rng.standard_normal(shape, np.float32)
            tensor = drawn * np.float32(shape[-1] ** -0.5) if len(shape) > 1 else 1 + drawn / 10
            writer.add(name, tensor.astype(ml_dtypes.bfloat16))


def memory(folder: Path, layers: int, samples: int, experts: str) -> Iterator[ExpertsRow]:
    """Quantize blocks of real shapes; the peak includes everything that this process holds."""
    model = folder / "large"
    write_large(model, layers)
    options: dict[str, Any] = {"samples": samples, "sequence_length": 512, "symmetric": True}
    options |= {"experts": experts, "ranges": "full"}  # a search takes time, but no memory
    found = quantize(model, folder / "large-quantized", text=text_files(), **options)
    shutil.rmtree(model)
    seconds = found.seconds["quantizing"] / layers
    yield ExpertsRow(
        "Qwen3-30B-A3B's shapes, 4 bits",
        f"{layers} of {LAYERS} blocks, {samples * 512} tokens, {experts}",
        f"{found.peak_bytes / 1e9:.1f} GB of memory at most (planned {found.plan.peak_bytes / 1e9:.1f}), "
        f"the same for {LAYERS} blocks; {seconds:.0f} s a block beside "
        f"{os.getloadavg()[0]:.0f} other threads",
    )


def main() -> int:
    """Measure, write the CSV and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("parts", nargs="*", help="together, tokens or memory (default all)")
    arguments.add_argument("--steps", type=int, default=400, help="of training")
    arguments.add_argument("--layers", type=int, default=1)
    arguments.add_argument("--samples", type=int, default=32)
    arguments.add_argument("--experts", default="routed")
    options = arguments.parse_args()
    machine = describe_machine(*PACKAGES)
    rows: dict[str, list[ExpertsRow]] = {}
    with suppress(FileNotFoundError):
        for row in read_csv(csv_file("experts", machine), ExpertsRow)[1]:
            rows.setdefault(row.part, []).append(row)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "together": together,
            "tokens": lambda: tokens(Path(folder), options.steps),
            "memory": lambda: memory(
                Path(folder), options.layers, options.samples, options.experts
            ),
        }
        for part in options.parts or runs:
            rows[part] = [row._replace(part=part) for row in runs[part]()]
    found = [row for part in runs for row in rows.get(part, [])]
    return report(write_csv("experts", machine, found), docs=options.docs)


if __name__ == "__main__":
    sys.exit(main())
