"""llm-compressor's GPTQ of a whole model, as its users run it: ``oneshot`` on a model of transformers.

Its wheel is unpacked, not installed, beside an installed compressed-tensors, accelerate and transformers.
What its `__init__` imports and GPTQ of given tokens never calls is replaced by names alone: datasets and
auto-round.
"""

from __future__ import annotations

import importlib.machinery
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from peers import LLM_COMPRESSOR

from numbacalib.demo.wheels import fetch_wheel

UNUSED = (
    "datasets",
    "datasets.formatting",
    "datasets.formatting.formatting",
    "auto_round",
    "auto_round.schemes",
    "auto_round.utils",
    "auto_round.wrapper",
)


class _Names(ModuleType):
    """A module that has any class, each empty."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load_llm_compressor() -> None:
    """Make ``llmcompressor`` importable."""
    for name in UNUSED:
        if name not in sys.modules:
            module = _Names(name)
            module.__path__ = []
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module
    wheel = fetch_wheel(*LLM_COMPRESSOR)
    folder = wheel.with_suffix("")
    if not folder.exists():  # from a wheel Python imports no package without an __init__
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    sys.path.append(str(folder))


class Oneshot(NamedTuple):
    """A model that `oneshot` quantized: its weights are what the codes stand for."""

    model: Any
    seconds: float
    """Of the call alone: loading the model before it and saving it are not counted."""
    gib: float
    """Of device memory, at most."""


def run_oneshot(
    folder: Path,
    tokens: NDArray,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    batch: int = 8,
    ours: bool = False,
    device: str,
) -> Oneshot:
    """Quantize a checkpoint by GPTQ with llm-compressor's order "static".

    With a `batch` above 1, everything stays on the device, the fastest way that it has; with 1 it runs by
    its defaults. With `ours`, its two functions are those of `replaced` from then on.
    """
    load_llm_compressor()
    if ours:
        from replaced import replace_gptq

        replace_gptq()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    processor = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = torch.from_numpy(tokens).long()
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    weights = QuantizationArgs(
        num_bits=bits,
        strategy="group",
        group_size=group_size,
        symmetric=symmetric,
        actorder="static",
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    kept: dict[str, Any] = {"sequential_offload_device": device} if batch > 1 else {}
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    oneshot(
        model=model,
        processor=processor,
        dataset=DataLoader(samples, batch_size=batch),
        recipe=GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"]),
        num_calibration_samples=len(samples),
        **kept,
    )
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return Oneshot(model, seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0)
