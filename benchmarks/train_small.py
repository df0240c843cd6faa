"""A small Llama whose K are multiples of 256, trained on the annual messages of presidents in some minutes.

k-quants store rows in blocks of 256, and no model of PyPI that is small has such rows. This one is trained
with torch on the years before those that benchmarks evaluate on::

    python benchmarks/train_small.py DIRECTORY [--minutes 15] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from numbacalib.demo import speeches

VOCABULARY, LENGTH, BATCH = 2048, 128, 8
TRAINED_YEARS = range(1790, 1946)
RATE, WARM_UP = 2e-3, 50


def trained_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE that splits text as GPT-2 does; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def configuration() -> LlamaConfig:
    """The model's shape: 3 blocks, K of 256 and 512."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def train(directory: Path, minutes: float) -> None:
    """Train for some minutes, and save what transformers loads, in float32."""
    torch.manual_seed(0)
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in speeches(TRAINED_YEARS))
    tokenizer = trained_tokenizer(text)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    model = LlamaForCausalLM(configuration())
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(0)
    begin, step = time.monotonic(), 0
    while (spent := (time.monotonic() - begin) / 60) < minutes:
        rate = RATE * min(1, (step + 1) / WARM_UP) * (1 - 0.9 * spent / minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = rng.integers(0, len(tokens) - LENGTH, BATCH)
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {spent:.1f} minutes", flush=True)
        step += 1
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ends
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.directory, options.minutes)


if __name__ == "__main__":
    main()
