"""What methods leave of a model whose weights never lay on a grid: a small Llama trained here, by torch.

    python benchmarks/trained.py [--device cuda]

It is trained for some minutes on the presidents' annual messages of 1830 to 1990, and calibrated on a part
of them. It is evaluated on later messages, and on earlier ones, which are of another kind; nats and KL are
against the original. llm-compressor's GPTQ gets the same token ids and the same grid, and its weights are
measured by our evaluation. Needs torch, transformers, and for llm-compressor what `oneshot` names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import describe_machine, write_csv
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tables import TrainedRow, trained_body
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from numbacalib import demo
from numbacalib.models import Decoder, open_checkpoint, open_place
from numbacalib.quantizer import evaluate, quantize
from numbacalib.quantizer.text import read_sequences

HIDDEN, LAYERS = 512, 8
VOCABULARY, LENGTH, BATCH = 4096, 512, 64
TEXTS = {"later": range(1991, 2100), "earlier": range(1790, 1830)}
TRAINED, CALIBRATED = range(1830, 1991), range(1930, 1991)
SAMPLES = 128
GROUP = 64
WIDTHS = (4, 3, 2)
PROPAGATED: dict[str, Any] = {"target": "propagated"}
METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "GPTQ, full ranges": {"ranges": "full"},
    "GPTQ (default)": {},
    "GPTQ, searched by plain error": {"ranges": "mse"},
    "GPTQ, refitted": {"refit": True},
    "GPTQ, AWQ's channel scales": {"channel_scales": "awq"},
    "GPTQ, propagated 0.25": PROPAGATED | {"target_strength": 0.25},
    "GPTQ, propagated 0.5": PROPAGATED | {"target_strength": 0.5},
    "GPTQ, propagated 1": PROPAGATED | {"target_strength": 1.0},
    "GPTQ, propagated 0.5, refitted": PROPAGATED | {"target_strength": 0.5, "refit": True},
}
PEER = "llm-compressor's GPTQ"
PACKAGES = ("numba", "numpy", "torch", "transformers")


def tokenizer_of(files: list[Path]) -> Tokenizer:
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


def train(folder: Path, files: list[Path], steps: int, device: str, hidden: int = HIDDEN) -> None:
    """Train a model on texts and write its checkpoint, bfloat16; rows are multiples of its hidden size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_of(files)
    ids = np.concatenate([tokenizer.encode(file.read_text()).ids for file in files])
    stream = torch.tensor(ids, device=device)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
    )
    model = LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        starts = torch.randint(0, len(stream) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([stream[start : start + LENGTH] for start in starts])
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


class Subject:
    """The trained model, its texts, and the losses of its sequences."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.calibration = demo.speeches(CALIBRATED)
        checkpoint = open_checkpoint(folder)
        self.tokens = {
            text: read_sequences(checkpoint, demo.speeches(years), LENGTH, 128)
            for text, years in TEXTS.items()
        }
        self.losses = {text: self.losses_of(folder, text) for text in TEXTS}

    def losses_of(self, folder: Path, text: str) -> NDArray[np.float64]:
        """Mean loss of each sequence of a text."""
        from numbacalib.formats.dequantized import dequantized

        checkpoint = dequantized(open_checkpoint(folder))
        decoder = Decoder(checkpoint, place=open_place(self.device))
        tokens = self.tokens[text]
        found = decoder.token_losses(decoder.forward(tokens), tokens)
        return np.asarray(found, np.float64).mean(axis=1)

    def rows(self, folder: Path, bits: int, method: str, seconds: float) -> list[TrainedRow]:
        """Measure a quantized checkpoint against the original."""
        rows = []
        for text, years in TEXTS.items():
            above = self.losses_of(folder, text) - self.losses[text]
            result = evaluate(
                folder,
                demo.speeches(years),
                sequence_length=LENGTH,
                samples=128,
                device=self.device,
                against=self.folder,
            )
            error = float(above.std(ddof=1) / len(above) ** 0.5)
            assert result.kl is not None
            assert result.kl_error is not None
            nats = float(above.mean())
            rows.append(
                TrainedRow(bits, method, text, nats, error, result.kl, result.kl_error, seconds)
            )
        print(
            f"{bits} bits, {method}: "
            + ", ".join(f"{row.text} {row.nats:.4f} nats, KL {row.kl:.4f}" for row in rows)
            + f", {seconds:.1f} s",
            flush=True,
        )
        return rows

    def ours(self, bits: int, method: str) -> list[TrainedRow]:
        """Quantize as `numbacalib quantize` does, and measure."""
        output = self.folder.with_name("quantized")
        shutil.rmtree(output, ignore_errors=True)
        options = {"bits": bits, "group_size": GROUP, "samples": SAMPLES, "sequence_length": LENGTH}
        options |= METHODS[method]
        text = [] if method == "RTN" else self.calibration
        begin = time.perf_counter()
        quantize(self.folder, output, text=text, device=self.device, **options)
        return self.rows(output, bits, method, time.perf_counter() - begin)

    def peer(self, bits: int) -> list[TrainedRow]:
        """Quantize by llm-compressor, write what its codes stand for as a plain checkpoint, and measure."""
        from oneshot import run_oneshot

        tokens = read_sequences(open_checkpoint(self.folder), self.calibration, LENGTH, SAMPLES)
        found = run_oneshot(
            self.folder, tokens, bits=bits, group_size=GROUP, symmetric=False, device=self.device
        )
        output = self.folder.with_name("peer")
        shutil.copytree(self.folder, output, dirs_exist_ok=True)
        names = load_file(self.folder / "model.safetensors")
        weights = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in found.model.state_dict().items()
            if name in names
        }
        save_file(weights, output / "model.safetensors", {"format": "pt"})
        return self.rows(output, bits, PEER, found.seconds)


def main() -> int:
    """Train, measure, and write the CSV."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--folder", type=Path, default=Path("/tmp/numbacalib-trained"))
    options.add_argument("--hidden", type=int, default=HIDDEN, help="size of the model")
    options.add_argument(
        "--train-only", action="store_true", help="leave the model, measure nothing"
    )
    options.add_argument("--no-peer", action="store_true", help="without llm-compressor")
    given = options.parse_args()
    folder = given.folder / "model"
    if not folder.exists():
        begin = time.perf_counter()
        train(folder, demo.speeches(TRAINED), given.steps, given.device, given.hidden)
        print(f"trained in {time.perf_counter() - begin:.0f} s")
    if given.train_only:
        return 0
    subject = Subject(folder, given.device)
    for text, losses in subject.losses.items():
        print(f"original, {text} messages: {losses.mean():.4f} nats")
    rows = []
    for bits in WIDTHS:
        for method in METHODS:
            rows += subject.ours(bits, method)
        if not given.no_peer:
            rows += subject.peer(bits)
    name = torch.cuda.get_device_name() if given.device != "cpu" else None
    facts = {} if name is None else {"machine": name}
    machine = describe_machine(
        *PACKAGES,
        evaluation=f"a Llama of width {given.hidden} trained for {given.steps} steps, groups of {GROUP}",
        **facts,
    )
    print(write_csv("trained", machine, rows))
    print(trained_body(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
