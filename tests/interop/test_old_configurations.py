"""Configurations as files on the hub have them, of several releases, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.architectures import save
from interop.rotary_variants import FULL, LONGROPE, SLIDING, YARN
from interop.test_architectures import RTOL, loss_of, random_tokens
from interop.wrapped_variants import WRAPPED
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from numbacalib.models import Decoder, open_checkpoint

LONG = {key: LONGROPE[key] for key in ("short_factor", "long_factor")} | {"type": "longrope"}
ALPHA = {"type": "dynamic", "alpha": 50.0, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
ALPHA |= {"beta_fast": 32, "beta_slow": 1}

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu of Gemma 1 is the other one": ("gemma", {"hidden_act": "gelu"}),
    "synonyms of activations": ("starcoder2", {"hidden_act": "gelu_new"}),
    "exact GELU": ("phi", {"hidden_act": "gelu"}),
    "bases beside": (
        "gemma3_text",
        {"rope_parameters": ..., "rope_theta": 5e4, "rope_local_base_freq": 50.0},
    ),
    "scaling beside": (
        "gemma3_text",
        {"rope_parameters": ..., "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "scaling beside parameters by type": (
        "gemma3_text-scaled", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "parameters of one type": (
        "gemma3_text", {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 300.0}}},
    ),
    "a pattern instead of types": (
        "gemma3_text", {"layer_types": ..., "sliding_window_pattern": 3},
    ),
    "YaRN of full layers alone": (
        "olmo3", {"rope_parameters": ..., "rope_theta": 5e5, "rope_scaling": YARN},
    ),
    "longrope whose first length is beside": (
        "phi3",
        {
            "rope_parameters": ...,
            "rope_theta": 1e4,
            "rope_scaling": LONG,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 16,
        },
    ),
    "a part beside": (
        "glm", {"rope_parameters": ..., "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    ),
    "a part by default": ("glm4", {"rope_parameters": ..., "rope_theta": 1e4}),
    "a pattern of windows": ("cohere2", {"layer_types": ..., "sliding_window_pattern": 2}),
    "an interval": ("smollm3", {"no_rope_layers": ..., "no_rope_layer_interval": 3}),
    "alpha": ("hunyuan_v1_dense", {"rope_parameters": ..., "rope_scaling": ALPHA}),
    "a name of a pattern": (
        "exaone4", {"sliding_window_pattern": "LLLG", "layer_types": [SLIDING] * 3 + [FULL]},
    ),
    "other names of biases": (
        "internlm3", {"attention_bias": ..., "mlp_bias": ..., "qkv_bias": True, "bias": True},
    ),
    "caps that are null": (
        "gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "caps by default": (
        "gemma2", {"attn_logit_softcapping": ..., "final_logit_softcapping": ...},
    ),
    "factors by default": ("granite", {"embedding_multiplier": ..., "logits_scaling": ...}),
    "windows of ministral": ("ministral", {"layer_types": ..., "sliding_window": 9}),
}  # fmt: skip


def rewrite(directory: Path, changes: dict[str, Any]) -> None:
    """Change config.json; an Ellipsis takes a key out."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: config[key] for key in config if config[key] is not ...}))


@pytest.mark.parametrize("name", CHANGES)
def test_perplexity_of(tmp_path: Path, name: str) -> None:
    variant, changes = CHANGES[name]
    before, tokens = loss_of(save(tmp_path, variant), random_tokens()), random_tokens()
    rewrite(tmp_path, changes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = loss_of(model, tokens)
    assert Decoder(open_checkpoint(tmp_path)).loss(tokens) == pytest.approx(expected, abs=RTOL)
    same = ("other names", "a name of", "a part by", "gelu of", "synonyms", "caps by")
    assert name.startswith(same) or abs(expected - before) > RTOL, "nothing to compare"


def test_a_decoder_whose_configuration_is_flat(tmp_path: Path) -> None:
    """As transformers 4 wrote Qwen's: with the scaling of three positions, and old names of tensors."""
    save(tmp_path, "qwen2_5_vl")
    text = WRAPPED["qwen2_5_vl"]["text_config"]
    config = json.loads((tmp_path / "config.json").read_text())
    section = text["rope_parameters"]["mrope_section"]
    inner = {key: value for key, value in config.pop("text_config").items() if key != "model_type"}
    del inner["rope_parameters"]
    scaling = {"type": "mrope", "mrope_section": section}
    flat = {**inner, **config, "rope_theta": 1e4, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = random_tokens()
    expected = loss_of(model, tokens)
    assert Decoder(open_checkpoint(tmp_path)).loss(tokens) == pytest.approx(expected, abs=RTOL)
