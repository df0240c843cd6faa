"""Every architecture against transformers: the same losses, and quantized checkpoints that it loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.architectures import VARIANTS, WRAPPED, save
from models.tiny import TEXT, tiny_tokenizer
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from numbacalib.formats import dequantized
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.wrappers import WRAPPERS
from numbacalib.quantizer import Settings, quantize

RTOL = 1e-5
"""Of the perplexity; both sides compute in float32 and add in another order."""


OTHERS = "vision|visual|projector|connector"
"""What is in the names of all that is no decoder."""


def random_tokens(length: int = 80) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 320, (2, length))


def loss_of(model: Any, tokens: NDArray[Any]) -> float:
    """Mean negative log likelihood, summed in float64."""
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits[:, :-1].double()
    return float(
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(tokens)[:, 1:].flatten()
        )
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_perplexity(tmp_path: Path, variant: str) -> None:
    model, tokens = save(tmp_path, variant), random_tokens()
    decoder = Decoder(open_checkpoint(tmp_path))
    assert decoder.loss(tokens) == pytest.approx(loss_of(model, tokens), abs=RTOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("variant", ["gemma2", "phi3", "olmo3", "cohere"])
def test_16_bit_checkpoints_in_shards(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    """Both compute in float32 from the same 16-bit weights."""
    save(tmp_path, variant, dtype, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = random_tokens()
    decoder = Decoder(open_checkpoint(tmp_path))
    assert decoder.loss(tokens) == pytest.approx(loss_of(model, tokens), abs=RTOL)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", ["gemma3_text", "granite", "glm4", "starcoder2"])
def test_tied_and_untied_heads(tmp_path: Path, variant: str, tied: bool) -> None:
    model, tokens = save(tmp_path, variant, tie_word_embeddings=tied), random_tokens()
    checkpoint = open_checkpoint(tmp_path)
    assert ("lm_head.weight" in checkpoint.names()) != tied
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(loss_of(model, tokens), abs=RTOL)


def quantized(
    tmp_path: Path, variant: str, *, symmetric: bool = True, group_size: int = 32
) -> Path:
    """A quantized checkpoint, with channel scales wherever something takes them up."""
    save(tmp_path / "model", variant)
    (tmp_path / "text.txt").write_text(TEXT * 4, encoding="utf-8")
    tiny_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    settings = Settings(
        bits=4,
        group_size=group_size,
        samples=4,
        sequence_length=32,
        channel_scales="awq",
        symmetric=symmetric,
    )
    quantize(tmp_path / "model", tmp_path / "out", text=[tmp_path / "text.txt"], settings=settings)
    return tmp_path / "out"


def assert_same_logits(output: Path, model: Any) -> None:
    tokens = random_tokens(24)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    decoder = Decoder(dequantized(open_checkpoint(output)))
    ours = decoder.logits(decoder.forward(tokens))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


NOT_LOADED = ("granitemoe",)
"""Transformers has no rule that makes their tensors of all experts of a module each: docs/formats.md."""


@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if "-" not in name and name not in NOT_LOADED]
)
def test_transformers_loads_quantized_checkpoints(tmp_path: Path, variant: str) -> None:
    output = quantized(tmp_path, variant)
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    assert_same_logits(output, model)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("variant", ["mixtral", "qwen2_moe-sparse", "glm4_moe-groups"])
def test_transformers_loads_experts_beside_layers_of_another_grid(
    tmp_path: Path, variant: str, symmetric: bool
) -> None:
    """Every tensor has its place: experts are symmetric, the other layers as asked."""
    output = quantized(tmp_path, variant, symmetric=symmetric)
    model, found = AutoModelForCausalLM.from_pretrained(
        output, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values()), found
    assert_same_logits(output, model.eval())


@pytest.mark.parametrize("variant", NOT_LOADED)
def test_what_transformers_does_not_load(tmp_path: Path, variant: str) -> None:
    """If this fails, it does now: say so in docs/formats.md."""
    output = quantized(tmp_path, variant)
    _, found = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    missing = {name.rpartition(".")[2] for name in found["missing_keys"]}
    assert missing == {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_decoders_within_other_models(tmp_path: Path, wrapper: str) -> None:
    """The decoder is quantized, the rest is copied under its own names and ignored."""
    output = quantized(tmp_path, wrapper)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    checkpoint, tokens = open_checkpoint(tmp_path / "model"), random_tokens()
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(
        loss_of(whole.eval(), tokens), abs=RTOL
    )
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    assert_same_logits(output, model)
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "model", output))
    others = {name for name in before if re.search(OTHERS, name)}
    assert others
    for name in others:
        np.testing.assert_array_equal(after[name].view(np.uint8), before[name].view(np.uint8))
    assert {re.sub("weight_.*", "weight", name) for name in after} == set(before)
    ignore = json.loads((output / "config.json").read_text())["quantization_config"]["ignore"]
    linears = [n for n, module in whole.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linears:
        ignored = name in ignore or any(
            re.match(expression.removeprefix("re:"), name) for expression in ignore
        )
        assert ignored == (name == "lm_head" or bool(re.search(OTHERS, name))), name


def test_groups_of_two_lengths_within_another_model(tmp_path: Path) -> None:
    """Layers are named by what all runtimes have in their names."""
    output = quantized(tmp_path, "llava", group_size=64)
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    named = config["config_groups"]["group_0"]
    assert named["targets"] == [rf"re:.*\.layers\.{i}\.mlp\.down_proj$" for i in range(2)]
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    assert_same_logits(output, model)


def test_every_wrapper_is_compared() -> None:
    assert set(WRAPPED) == set(WRAPPERS) - {"llava_next", "llava_onevision"}  # as llava


def test_every_architecture_is_compared() -> None:
    alone = {name for name, architecture in ARCHITECTURES.items() if architecture.causal_lm}
    assert {variant.partition("-")[0] for variant in VARIANTS} == alone
