"""Whole models of given shapes on a GPU, from files to files: ours, and llm-compressor's ``oneshot``.

    python benchmarks/model_gpu.py 1b --cold --peer --propagated --floor
    python benchmarks/model_gpu.py 8b
    python benchmarks/model_gpu.py 70b --layers 1 --gib 24 --runs 1

Weights are random bfloat16, and the text is random: only times and memory are meaningful. Needs the extras
`models` and `cuda`, and for `--peer` torch, transformers, accelerate and compressed-tensors. Pending device
work counts in the phase that waits for it.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from harness import RESULTS, Row, describe_machine, figure, write_csv
from tokenizers import Tokenizer, models, pre_tokenizers

from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.models import open_checkpoint
from numbacalib.quantizer import Settings, quantize
from numbacalib.quantizer.report import RunReport
from numbacalib.quantizer.text import read_sequences

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "heads": 64},
}
"""Llama-3.2-1B, Llama-3.1-8B and 70B, except for the vocabulary."""
VOCABULARY, KEY_HEADS = 8192, 8


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """Write a checkpoint of a shape, with the same random weights in each block."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["heads"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": shape["num_hidden_layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": KEY_HEADS,
        "head_dim": head,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }
    rng = np.random.default_rng(0)

    def normal(rows: int, columns: int) -> Any:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return (values * np.float32(columns**-0.5)).astype(ml_dtypes.bfloat16)

    keys = KEY_HEADS * head
    block = {
        "self_attn.q_proj": normal(hidden, hidden),
        "self_attn.k_proj": normal(keys, hidden),
        "self_attn.v_proj": normal(keys, hidden),
        "self_attn.o_proj": normal(hidden, hidden),
        "mlp.gate_proj": normal(inner, hidden),
        "mlp.up_proj": normal(inner, hidden),
        "mlp.down_proj": normal(hidden, inner),
        "input_layernorm": np.ones(hidden, ml_dtypes.bfloat16),
        "post_attention_layernorm": np.ones(hidden, ml_dtypes.bfloat16),
    }
    folder.mkdir(parents=True)
    with SafetensorsWriter(folder) as writer:
        writer.add("model.embed_tokens.weight", normal(VOCABULARY, hidden))
        writer.add("model.norm.weight", np.ones(hidden, ml_dtypes.bfloat16))
        for layer in range(shape["num_hidden_layers"]):
            for name, tensor in block.items():
                writer.add(f"model.layers.{layer}.{name}.weight", tensor)
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_text(file: Path, tokens: int) -> None:
    """Write text of at least `tokens` one-byte tokens."""
    letters = np.random.default_rng(1).integers(97, 123, tokens + 64, dtype=np.uint8)
    letters[::6] = 32
    letters[::90] = 10
    file.write_bytes(letters.tobytes())


GOALS = {"1b": (5.0, None), "8b": (30.0, 60.0), "70b": (None, None)}
"""Most seconds of a shape: its blocks, and from files to files."""
PACKAGES = ("numba", "numba-cuda", "numpy", "cupy-cuda13x")
PEER, BATCH = "llm-compressor", 8
"""Sequences per batch; its default is one."""
MOST = 1.6
"""Largest allowed ratio of the blocks' time with the propagated target to that with the layer-wise one."""


class Run:
    """One model, one text and the settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        shape = SHAPES[options.shape]
        if options.layers:
            shape = shape | {"num_hidden_layers": options.layers}
        self.name = f"{options.shape}, {shape['num_hidden_layers']} blocks"
        if options.gib:
            self.name += f", pool of {options.gib:g} GiB"
        self.device: str = options.device
        self.folder: Path = options.folder
        self.model = options.folder / f"{options.shape}-{shape['num_hidden_layers']}"
        self.text = options.folder / f"text-{options.samples * options.sequence_length}.txt"
        if not self.model.exists():
            begin = time.perf_counter()
            write_model(self.model, shape)
            print(f"wrote {self.model} in {time.perf_counter() - begin:.1f} s")
        write_text(self.text, options.samples * options.sequence_length)
        self.settings = Settings(
            bits=4,
            group_size=128,
            symmetric=True,
            target=options.target,
            samples=options.samples,
            sequence_length=options.sequence_length,
        )

    def measured(self) -> tuple[float, RunReport]:
        """Seconds from files to files, and the report."""
        output = self.folder / "quantized"
        shutil.rmtree(output, ignore_errors=True)
        begin = time.perf_counter()
        report = quantize(
            self.model,
            output,
            text=[self.text],
            settings=self.settings,
            device=self.device,
            planned=lambda plan: print(plan.summary(), file=sys.stderr),
        )
        return time.perf_counter() - begin, report


def cold_seconds(options: argparse.Namespace) -> float:
    """Seconds of the same in a process that finds no kernels on disk, without the process's start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, options.shape, "--once"]
        for name in ("layers", "target", "samples", "sequence_length", "folder", "device"):
            if getattr(options, name) is not None:
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return float(done.stdout.split()[-1])


def ours(run: Run, options: argparse.Namespace) -> list[Row]:
    """Rows of our run: the least time of several, that of its blocks alone, and cold."""
    from numba import cuda

    apart, whole = GOALS[options.shape] if not (options.layers or options.gib) else (None, None)
    found = [run.measured() for _ in range(1 + options.runs)][1:]
    for wall, report in found:
        listed = ", ".join(f"{name} {own:.2f}" for name, own in report.seconds.items())
        print(f"from files to files: {wall:.2f} s: {listed}")
    memory = cuda.current_context().get_memory_info()
    taken = (memory.total - memory.free) / 2**30
    walls, reports = zip(*found, strict=True)
    planned = max(report.plan.device_bytes for report in reports) / 2**30
    pooled = max(report.device_bytes for report in reports) / 2**30
    print(f"device memory: {taken:.1f} GiB, of the pool {pooled:.2f}, planned {planned:.2f}")
    figures = [
        ("files to files", min(walls), "s", whole),
        ("the blocks alone", min(each.seconds["quantizing"] for each in reports), "s", apart),
        ("device memory", taken, "GiB", None),
        ("device memory of arrays", pooled, "GiB", None),
        ("device memory of arrays, planned", planned, "GiB", None),
    ]
    if options.cold:
        cold = cold_seconds(options)
        print(f"without kernels on disk: {cold:.2f} s")
        figures.append(("no kernels on disk", cold, "s", None))
    return [
        figure(f"quantize, {op}", run.name, value, unit, dtype="bfloat16", limit=limit)
        for op, value, unit, limit in figures
    ]


def propagated(options: argparse.Namespace, blocks: float) -> list[Row]:
    """Rows of the command's default target, against the seconds of the layer-wise blocks."""
    run = Run(argparse.Namespace(**vars(options) | {"target": "propagated"}))
    found = [run.measured() for _ in range(1 + options.runs)][1:]
    wall = min(wall for wall, _ in found)
    own = min(report.seconds["quantizing"] for _, report in found)
    print(f"propagated target: {wall:.2f} s, its blocks {own:.2f} s")
    limit: dict[str, Any] = {"limit": blocks, "against": "the layer-wise target", "slack": MOST}
    return [
        figure(
            "quantize, propagated target, files to files", run.name, wall, "s", dtype="bfloat16"
        ),
        figure(
            "quantize, propagated target, the blocks", run.name, own, "s", dtype="bfloat16", **limit
        ),
    ]


def peer(run: Run) -> list[Row]:
    """Rows of llm-compressor on the same checkpoint and tokens, also with two of its functions replaced."""
    from oneshot import run_oneshot

    length = run.settings.sequence_length
    tokens = read_sequences(open_checkpoint(run.model), [run.text], length, run.settings.samples)
    rows = []
    for ours in (False, True):  # in this order, since replaced functions stay replaced
        who = f"{PEER}, batch {BATCH} on the device" + (", two functions ours" if ours else "")
        _, seconds, memory = run_oneshot(
            run.model,
            tokens,
            bits=4,
            group_size=128,
            batch=BATCH,
            ours=ours,
            device=run.device,
        )
        print(f"{who}: {seconds:.2f} s, {memory:.1f} GiB")
        row = figure("quantize, the blocks alone", run.name, seconds, "s", dtype="bfloat16")
        rows.append(row._replace(who=who))
        row = figure("quantize, device memory", run.name, memory, "GiB", dtype="bfloat16")
        rows.append(row._replace(who=who))
    return rows


def floor(run: Run, options: argparse.Namespace) -> Row:
    """Row of the blocks' necessary parts: forward, Hessians and solves, each timed alone."""
    from forward_gpu import Pieces

    blocks = open_checkpoint(run.model).config.num_layers
    seconds = Pieces(run.model, options.samples, options.sequence_length).floor(blocks)
    print(f"forward, Hessians and solves by themselves: {seconds:.2f} s")
    row = figure("quantize, the blocks alone", run.name, seconds, "s", dtype="bfloat16")
    return row._replace(who="forward, Hessians and solves by themselves")


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--target", default="layerwise", help="default: layerwise, as the peer's")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/numbacalib-model"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gib", type=float, help="limit of CuPy's pool of device memory")
    parser.add_argument("--cold", action="store_true", help="also run without kernels on disk")
    parser.add_argument("--propagated", action="store_true", help="also run a propagated target")
    parser.add_argument("--peer", action="store_true", help="also run llm-compressor")
    parser.add_argument("--floor", action="store_true", help="also time the necessary parts alone")
    parser.add_argument("--once", action="store_true", help="run once, and print the seconds")
    parser.add_argument("--profile", action="store_true", help="profile the host's time")
    options = parser.parse_args()
    if options.gib:
        import cupy

        cupy.get_default_memory_pool().set_limit(int(options.gib * 2**30))
    run = Run(options)
    if options.once:
        print(f"{run.measured()[0]:.2f}")
        return 0
    if options.profile:
        run.measured()
        profile = cProfile.Profile()
        profile.runcall(run.measured)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return 0
    import cupy

    rows = ours(run, options)
    if options.propagated:
        rows += propagated(options, next(row.seconds for row in rows if "blocks" in row.op))
    rows += [floor(run, options)] if options.floor else []
    rows += peer(run) if options.peer else []
    machine = describe_machine(
        *PACKAGES, machine=cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    )
    limited = f"-{options.gib:g}gib" if options.gib else ""
    print(write_csv(f"model-{options.shape}-gpu{limited}", machine, rows, RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
