"""Quantizes whole models of named shapes on a GPU, from files to files, and says where the time goes.

Weights are random bfloat16, and so is the text: only times and memory mean something. Run it as
``python benchmarks/model_gpu.py 1b`` on a machine with a GPU (extras `models` and `cuda`).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import shutil
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.quantizer import Settings, evaluate, quantize

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "heads": 32},
}
"""Llama-3.2-1B and Llama-3.1-8B, but for the vocabulary."""
VOCABULARY, KEY_HEADS = 8192, 8


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """Write a checkpoint of a shape, each of its blocks with the same random weights."""
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
    """Write text of so many one-byte tokens."""
    letters = np.random.default_rng(1).integers(97, 123, tokens + 64, dtype=np.uint8)
    letters[::6] = 32
    letters[::90] = 10
    file.write_bytes(letters.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/numbacalib-model"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true", help="where the host's time goes")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = shape | {"num_hidden_layers": options.layers}
    model = options.folder / f"{options.shape}-{shape['num_hidden_layers']}"
    if not model.exists():
        begin = time.perf_counter()
        write_model(model, shape)
        print(f"wrote {model} in {time.perf_counter() - begin:.1f} s")
    text = options.folder / "text.txt"
    write_text(text, options.samples * options.sequence_length)
    settings = Settings(
        bits=4,
        group_size=128,
        symmetric=True,
        samples=options.samples,
        sequence_length=options.sequence_length,
    )
    for run in range(options.runs):
        output = options.folder / "quantized"
        shutil.rmtree(output, ignore_errors=True)
        profile = cProfile.Profile()
        begin = time.perf_counter()
        if options.profile:
            profile.enable()
        layers = quantize(model, output, text=[text], settings=settings, device=options.device)
        profile.disable()
        wall = time.perf_counter() - begin
        solves = sum(layer.seconds for layer in layers)
        print(f"run {run + 1}: {wall:.2f} s, of which {solves:.2f} s in layers")
        if options.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    begin = time.perf_counter()
    result = evaluate(
        output, [text], sequence_length=options.sequence_length, samples=16, device=options.device
    )
    print(f"evaluate: loss {result.loss:.4f} in {time.perf_counter() - begin:.2f} s")
    if options.device != "cpu":
        from numba import cuda

        memory = cuda.current_context().get_memory_info()
        print(f"device memory taken at the end: {(memory.total - memory.free) / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
