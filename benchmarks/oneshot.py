"""llm-compressor's GPTQ or AWQ of a model, as its users run it: ``oneshot`` on a model of transformers.

Its wheel is unpacked, not installed, beside an installed compressed-tensors, accelerate and transformers.
Packages that its `__init__` imports but `oneshot` on given tokens never calls are replaced by stubs:
datasets and auto-round.
"""

from __future__ import annotations

import fnmatch
import importlib.machinery
import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
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
    """Stub of a module that has an empty class of any name."""

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
    if not folder.exists():  # Python cannot import packages without an __init__ from a wheel
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    sys.path.append(str(folder))


class Oneshot(NamedTuple):
    """A model that `oneshot` quantized, with dequantized weights."""

    model: Any
    seconds: float
    """Of the call alone, without loading and saving the model."""
    gib: float
    """Peak device memory."""


def run_oneshot(
    folder: Path,
    tokens: NDArray,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    batch: int = 8,
    ours: bool = False,
    skip: Sequence[str] = (),
    method: str = "gptq",
    observer: str | None = None,
    device: str,
) -> Oneshot:
    """Quantize a checkpoint by "gptq", with llm-compressor's order "static", or by "awq".

    `skip` are shell-style patterns of layers. `observer` is the name of the one that finds ranges, by
    default llm-compressor's.
    With a `batch` above 1 everything stays on the device, its fastest mode; with 1 it runs with its
    defaults. With `ours`, two of its functions are replaced by those of `replaced`, permanently.
    """
    load_llm_compressor()
    if ours:
        from replaced import replace_gptq

        replace_gptq()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
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
        actorder="static" if method == "gptq" else None,
        **({} if observer is None else {"observer": observer}),
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    targets: dict[str, Any] = {"config_groups": {"all": scheme}, "ignore": ["lm_head"]}
    targets["ignore"] += [f"re:{fnmatch.translate(pattern)}" for pattern in skip]
    recipe = [GPTQModifier(**targets)]
    if method == "awq":
        recipe = [AWQModifier(), QuantizationModifier(**targets)]
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
        recipe=recipe,
        num_calibration_samples=len(samples),
        **kept,
    )
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return Oneshot(model, seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0)


def write_dequantized(model: Any, folder: Path, output: Path) -> None:
    """Write a checkpoint like that of `folder`, with a quantized model's dequantized weights."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from safetensors.torch import load_file, save_file

    weights = {name: value.detach() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if (scheme := getattr(module, "quantization_scheme", None)) is not None:
            grid = module.weight_scale, getattr(module, "weight_zero_point", None)
            weights[f"{name}.weight"] = fake_quantize(module.weight, *grid, scheme.weights)
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.safetensors"))
    stored = {
        name: weights[name].detach().to(tensor.dtype).cpu().contiguous()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(stored, output / "model.safetensors", {"format": "pt"})
