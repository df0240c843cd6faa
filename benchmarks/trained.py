"""Small language models whose weights were never quantized: trained here, by torch, in half a minute.

    python benchmarks/trained.py llama FOLDER [--device cuda]

They learn from texts of two kinds: see `texts`. `quality.py` trains them automatically, and measures
methods on them. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import read_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, LENGTH, BATCH, STEPS = 4096, 512, 64, 400
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "gemma3_text": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "sliding_window": 256,
    },
}
"""By model type: gated by SiLU with one norm per sublayer; or gated by GELU with two, norms of queries and
keys, and windows."""


def train(folder: Path, kind: str, files: list[Path], device: str, steps: int = STEPS) -> None:
    """Train a model of type `kind` on texts and write its checkpoint, bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    begin = time.perf_counter()
    tokenizer = _tokenizer(files)
    ids = np.concatenate([tokenizer.encode(file.read_text("utf-8")).ids for file in files])
    stream = torch.tensor(ids, device=device)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        **SHAPES[kind],
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(0, len(stream) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([stream[start : start + LENGTH] for start in starts])
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{kind}, step {step}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    print(f"{kind} trained in {time.perf_counter() - begin:.0f} s on {len(ids)} tokens", flush=True)


def _tokenizer(files: list[Path]) -> Tokenizer:
    """Train a byte-level BPE on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(file) for file in files], trainer)
    return tokenizer


def main() -> int:
    """Train one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    files = read_texts(given.folder.parent).learnt
    train(given.folder, given.kind, files, given.device, given.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
