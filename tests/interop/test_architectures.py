"""Every architecture against transformers: the same losses, and quantized checkpoints that it loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.architectures import VARIANTS, save
from interop.wrapped_variants import WRAPPED
from models.tiny import TEXT, tiny_tokenizer
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Mxfp4Config,
)

from numbacalib.formats import dequantized
from numbacalib.models import Checkpoint, Decoder, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.tensor_names import canonical_name
from numbacalib.models.wrappers import WRAPPERS
from numbacalib.quantizer import Settings, quantize

RTOL = 1e-5
"""Of the perplexity; both sides compute in float32 and add in another order."""


OTHERS = "vision|visual|projector|connector"
"""What is in the names of all that is no decoder."""
LEFT = rf"lm_head$|router$|in_proj_[ab]$|shared_expert_gate$|g_proj$|model_projection$|{OTHERS}"
"""And of linear layers that are not quantized."""


def random_tokens(length: int = 80) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 320, (2, length))


def logits_of(model: Any, tokens: NDArray[Any]) -> Any:
    """Logits of a text; of a llama4 by its decoder, since transformers 5.24 as a whole fails on one."""
    decoder = model.language_model if model.config.model_type == "llama4" else model
    with torch.no_grad():
        return decoder(torch.from_numpy(tokens)).logits


def loss_of(model: Any, tokens: NDArray[Any]) -> float:
    """Mean negative log likelihood, summed in float64."""
    logits = logits_of(model, tokens)[:, :-1].double()
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


@pytest.mark.parametrize(
    ("dtype", "tied"), [(torch.bfloat16, True), (torch.float16, False)], ids=["bf16", "f16"]
)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if "-" not in name])
def test_16_bit_checkpoints_in_shards_with_heads_of_either_kind(
    tmp_path: Path, variant: str, dtype: torch.dtype, tied: bool
) -> None:
    """Both compute in float32 from the same 16-bit weights."""
    save(tmp_path, variant, dtype, max_shard_size="40KB", tie_word_embeddings=tied)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(tmp_path)
    has_head = not tied or variant == "nemotron_h"  # whose head transformers never ties
    assert ("lm_head.weight" in checkpoint.names()) == has_head
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = random_tokens()
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(loss_of(model, tokens), abs=RTOL)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", ["gemma3_text", "granite", "glm4", "gpt_oss", "gpt2", "falcon"])
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
    theirs = logits_of(model, tokens).numpy()
    decoder = Decoder(dequantized(open_checkpoint(output)))
    ours = decoder.logits(decoder.forward(tokens))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


OF_ALL = {"gate_up_proj", "down_proj"}
NOT_LOADED = {
    "granitemoe": OF_ALL,
    "granitemoeshared": OF_ALL,
    "granitemoehybrid-experts": OF_ALL,
    "gemma4_text-experts": OF_ALL,
    "gpt_oss": OF_ALL,
    "sarvam_moe": {"weight"},
}
"""Transformers has no rule that makes their tensors of all experts of a module each, or those of the layers
that it takes a fused one apart into: docs/formats.md."""
NOT_LOADED_WITHIN = ("qwen3_vl_moe", "mistral3-experts")
"""The same, within other models."""
NO_LINEAR = ("gpt2",)
"""Their layers are none to compressed-tensors, which quantizes ``torch.nn.Linear``: docs/formats.md."""

WHILE_LOADING = ("falcon", "gpt_bigcode")
"""Their layers read weights that compressed ones do not have: they load where they are dequantized at once,
as on the asymmetric grid."""


@pytest.mark.parametrize(
    "variant",
    [
        *(name for name in VARIANTS if "-" not in name and name not in (*NOT_LOADED, *NO_LINEAR)),
        "gemma4_text-small",
    ],
)
def test_transformers_loads_quantized_checkpoints(tmp_path: Path, variant: str) -> None:
    output = quantized(tmp_path, variant, symmetric=variant not in WHILE_LOADING)
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
    missing = {name.rpartition(".")[2].removesuffix("_bias") for name in found["missing_keys"]}
    assert missing == NOT_LOADED[variant]


@pytest.mark.parametrize("variant", ["gpt_oss", "gpt2"])
def test_what_it_does_not_load_computes_the_same(tmp_path: Path, variant: str) -> None:
    """The weights that codes stand for, as its own parameters."""
    output = quantized(tmp_path, variant)
    checkpoint = dequantized(open_checkpoint(output))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(parameter_of(checkpoint, name).copy()))
    assert_same_logits(output, model)


def parameter_of(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """A parameter that transformers has, of what is ours."""
    own = canonical_name(name, checkpoint.config)
    fused = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?", own)
    if fused is None:
        tensor = checkpoint.tensor(own)
        return tensor.T if "attn.c_" in own or "mlp.c_" in own else tensor
    each, part, bias = fused.groups()
    mixture = checkpoint.config.mixture
    assert mixture is not None
    ending = "bias" if bias else "weight"
    roles = ("gate_proj", "up_proj") if part == "gate_up" else ("down_proj",)
    experts = []
    for expert in range(mixture.experts):
        parts = [checkpoint.tensor(f"{each}.{expert}.{role}.{ending}").T for role in roles]
        experts.append(np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1))
    return np.stack(experts)


def test_kimi_k2_is_deepseek_v3_under_a_name_of_its_own(tmp_path: Path) -> None:
    save(tmp_path / "model", "deepseek_v3")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    file.write_text(json.dumps(config | {"model_type": "kimi_k2"}))
    checkpoint, tokens = open_checkpoint(tmp_path / "model"), random_tokens()
    assert checkpoint.config.architecture.title == "Kimi K2"
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(loss_of(theirs, tokens), abs=RTOL)


def test_mxfp4_is_read_as_by_transformers(tmp_path: Path) -> None:
    """Both compute in float32 from the bfloat16 that codes and scales stand for."""
    save(tmp_path, "gpt_oss", torch.bfloat16)
    rewrite(tmp_path, in_float4, {"quant_method": "mxfp4"})
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    )
    checkpoint, tokens = open_checkpoint(tmp_path), random_tokens()
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(
        loss_of(model.float().eval(), tokens), abs=RTOL
    )


def test_fp8_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    """Transformers itself needs accelerate to read it: it gets the products of codes and factors."""
    model = save(tmp_path, "deepseek_v3", torch.bfloat16)
    rewrite(tmp_path, in_float8, {"quant_method": "fp8", "weight_block_size": [32, 32]})
    stored = load_torch_file(tmp_path / "model.safetensors")
    meant = {name: stored[name] for name in stored if not name.endswith("_scale_inv")}
    for name, factors in stored.items():
        if name.endswith("_scale_inv"):
            codes = stored[name.removesuffix("_scale_inv")].float()
            wide = factors.repeat_interleave(32, 0).repeat_interleave(32, 1)
            rows, columns = codes.shape
            product = (codes * wide[:rows, :columns]).to(torch.bfloat16)
            meant[name.removesuffix("_scale_inv")] = product
    model.save_pretrained(tmp_path / "plain")
    save_torch_file(meant, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    checkpoint, tokens = open_checkpoint(tmp_path), random_tokens()
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(loss_of(theirs, tokens), abs=RTOL)


def rewrite(model: Path, pack: Any, quantization: dict[str, Any]) -> None:
    """Store the weights of a model in another way, and say so in its configuration."""
    file = model / "model.safetensors"
    save_torch_file(pack(load_torch_file(file)), file, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = quantization
    (model / "config.json").write_text(json.dumps(config))


def in_float8(tensors: dict[str, Any]) -> dict[str, Any]:
    """Linear layers with random factors of their blocks."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if re.search(r"(_proj|_mqa)\.weight$", name):
            rows, columns = (-(-n // 32) for n in tensor.shape)
            found[name] = (tensor.float() * 200).clamp(-448, 448).to(torch.float8_e4m3fn)
            found[f"{name}_scale_inv"] = (1 + torch.rand(rows, columns)) / 300
    return found


def in_float4(tensors: dict[str, Any]) -> dict[str, Any]:
    """Random codes and exponents in the place of experts."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith("_proj")}
    for name in tensors.keys() - found.keys():
        experts, columns, rows = tensors[name].shape
        blocks = experts, rows, columns // 32
        found[f"{name}_blocks"] = torch.randint(0, 256, (*blocks, 16), dtype=torch.uint8)
        found[f"{name}_scales"] = torch.randint(122, 125, blocks, dtype=torch.uint8)
    return found


@pytest.mark.parametrize("wrapper", NOT_LOADED_WITHIN)
def test_decoders_for_whose_quantized_experts_transformers_has_no_rule(
    tmp_path: Path, wrapper: str
) -> None:
    """If the second part fails, it has one now: compare it with the other wrappers."""
    output = quantized(tmp_path, wrapper)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    checkpoint, tokens = open_checkpoint(tmp_path / "model"), random_tokens()
    theirs = loss_of(whole.eval(), tokens)
    assert Decoder(checkpoint).loss(tokens) == pytest.approx(theirs, abs=RTOL)
    _, found = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    missing = {name.rpartition(".")[2] for name in found["missing_keys"]}
    assert missing == OF_ALL


@pytest.mark.parametrize("wrapper", [name for name in WRAPPED if name not in NOT_LOADED_WITHIN])
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
    names = {re.sub("weight_.*", "weight", name) for name in after}
    experts = {name for name in (*names, *before) if ".experts." in name}  # in another layout
    assert names - experts == set(before) - experts
    ignore = json.loads((output / "config.json").read_text())["quantization_config"]["ignore"]
    linears = [n for n, module in whole.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linears:
        ignored = name in ignore or any(
            re.match(expression.removeprefix("re:"), name) for expression in ignore
        )
        assert ignored == bool(re.search(LEFT, name)), name


def test_groups_of_two_lengths_within_another_model(tmp_path: Path) -> None:
    """Layers are named by what all runtimes have in their names."""
    output = quantized(tmp_path, "llava", group_size=64)
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    named = config["config_groups"]["group_0"]
    assert named["targets"] == [rf"re:.*\.layers\.{i}\.mlp\.down_proj$" for i in range(2)]
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    assert_same_logits(output, model)


def test_every_wrapper_is_compared() -> None:
    assert {variant.partition("-")[0] for variant in WRAPPED} == set(WRAPPERS) - {
        "llava_next",
        "llava_onevision",
        "kimi_vl",
    }  # as llava and kimi_k25


def test_every_architecture_is_compared() -> None:
    alone = {name for name, architecture in ARCHITECTURES.items() if architecture.causal_lm}
    assert {variant.partition("-")[0] for variant in VARIANTS} == alone
