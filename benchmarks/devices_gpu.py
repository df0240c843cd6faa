"""The same model on the CPU and on a GPU: perplexity on real texts, and losses of quantized layers.

    python benchmarks/devices_gpu.py --models glassllm SmolLM2-135M

Models are measured as stored, in 16 bits, and in float32: a GPU multiplies in the model's own type, the CPU
in float32. Layers are quantized from statistics of the original model, collected on the same device: in a
run over the text a single tie between codes would change the inputs of all later layers. The effect of ties
on one device is shown by weights perturbed by 1e-7. Needs the extras `models` and `cuda`.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from device_rows import DeviceRow
from harness import RESULTS, describe_machine, write_csv
from report import parser, report
from safetensors.numpy import load_file, save_file
from small_models import checkpoint_of_glassllm, checkpoint_of_smollm2
from texts import KINDS, read_texts

from numbacalib.quantizer import collect, evaluate, quantize

MODELS = {
    "glassllm": (checkpoint_of_glassllm, "float16", 128, 32),
    "SmolLM2-135M": (checkpoint_of_smollm2, "bfloat16", 512, 64),
}
"""Function that returns the checkpoint, its dtype, tokens per sequence, and channels per group."""
TOKENS = 8192
"""Of calibration, and of evaluation on each text."""
LIMITS = {"float32": (1e-4, 1e-3), "float16": (5e-3, 2e-2), "bfloat16": (5e-3, 2e-2)}
"""Allowed relative differences of perplexities, and of losses of layers, by dtype."""
PACKAGES = ("numba", "numba-cuda", "numpy", "cupy-cuda13x")


def in_float32(model: Path, folder: Path) -> Path:
    """Write the same weights in float32."""
    folder.mkdir()
    tensors = load_file(model / "model.safetensors")
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    for file in model.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text()) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def changed(model: Path, folder: Path) -> Path:
    """Write the same model with every weight perturbed by about 1e-7 of itself."""
    shutil.copytree(model, folder)
    rng = np.random.default_rng(0)
    tensors = {
        name: (tensor * (1 + 1e-7 * rng.standard_normal(tensor.shape))).astype(np.float32)
        for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def layer_row(
    name: str, dtype: str, which: str, limit: float, ours: np.ndarray, other: np.ndarray
) -> DeviceRow:
    """Row of the layer with the largest difference of losses, or with the median one."""
    order = np.argsort(np.abs(other / ours - 1))
    index = order[len(order) // 2] if which == "the middle" else order[-1]
    figure = f"loss of a layer, {which} of {len(ours)}"
    return DeviceRow(name, dtype, figure, float(ours[index]), float(other[index]), limit)


def rows_of(name: str, model: Path, dtype: str, folder: Path) -> list[DeviceRow]:
    """Rows of one model."""
    texts = read_texts(folder / "texts")
    _, _, length, group_size = MODELS[name]
    size: dict[str, Any] = {"samples": TOKENS // length, "sequence_length": length}
    least, of_layers = LIMITS[dtype]
    rows = []
    for kind in KINDS:
        cpu, gpu = (
            evaluate(model, texts.held_out[kind], device=device, **size).perplexity
            for device in ("cpu", "cuda")
        )
        rows.append(DeviceRow(name, dtype, f"perplexity, {kind}", cpu, gpu, least))
    settings: dict[str, Any] = {"group_size": group_size, "symmetric": True, "target": "layerwise"}

    def losses(model: Path, device: str) -> np.ndarray:
        scratch = Path(tempfile.mkdtemp(dir=folder))
        found, output = scratch / "inputs", scratch / "output"
        text = texts.calibration["messages"]  # alone: what a model writes depends on its rounding
        collect(model, found, text=text, own_text=0.0, device=device, **size)
        layers = quantize(model, output, statistics=found, device=device, **settings).layers
        return np.array([layer.loss for layer in layers])

    on_host, there = losses(model, "cpu"), losses(model, "cuda")
    figures = ("the middle", of_layers), ("the furthest", of_layers)
    rows += [layer_row(name, dtype, *each, on_host, there) for each in figures]
    if dtype == "float32":
        again = losses(changed(model, folder / f"{model.name}-changed"), "cpu")
        where = "CPU twice, weights changed by 1e-7, the furthest", math.nan
        rows.append(layer_row(name, dtype, *where, on_host, again))
    for row in rows:
        print(row, f"{row.difference:.2e}")
    return rows


def main() -> int:
    """Measure, write the CSV, print the table; return 1 if a limit is exceeded."""
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = made.parse_args()
    import cupy

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in options.models:
            checkpoint, dtype, *_ = MODELS[name]
            model = checkpoint()
            rows += rows_of(name, in_float32(model, folder / name), "float32", folder)
            rows += rows_of(name, model, dtype, folder)
    gpu = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    file = write_csv("devices-gpu", describe_machine(*PACKAGES, machine=gpu), rows, RESULTS)
    report(file, docs=options.docs)
    return int(any(row.falls_short for row in rows))


if __name__ == "__main__":
    sys.exit(main())
