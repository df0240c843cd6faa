"""Random checkpoints of the architectures that GGUF files are written of, rows of whole blocks of 256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.described import described_tensors
from models.tiny import VOCAB_SIZE, tiny_tokenizer
from safetensors.numpy import save_file

from numbacalib.models import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
}
FACTORS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(24)],
    "long_factor": [2.0 + i for i in range(24)],
    "attention_factor": 1.1875,
}

MODELS: dict[str, dict[str, Any]] = {
    "arcee": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "ernie4_5": {},
    "exaone4": {"sliding_window": None},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 16, "num_hidden_layers": 7},
    "glm": {},
    "glm4": {},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
    },
    "granite": FACTORS,
    "granitemoe": FACTORS | LOCAL_EXPERTS,
    "hunyuan_v1_dense": {},
    "internlm3": {},
    "mixtral": LOCAL_EXPERTS | {"num_local_experts": 8},
    "nemotron": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16, "rope_scaling": YARN},
    "phi": {},
    "phi3": {"sliding_window": None},
    "phi3-longrope": {
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 512,
        "rope_scaling": LONGROPE,
    },
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 256},
    "qwen3_moe": EXPERTS | {"norm_topk_prob": True},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
"""By ``model_type``, with something after a hyphen for variants; llama's relatives are `models.tiny`'s."""


def write_model(directory: Path, name: str, **overrides: Any) -> Path:
    """Write one of `MODELS`, float32, with a tokenizer; return its directory."""
    directory.mkdir(parents=True)
    config = SIZES | {"model_type": name.partition("-")[0]} | MODELS[name] | overrides
    (directory / "config.json").write_text(json.dumps(config))
    tensors = described_tensors(ModelConfig.from_hf(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return directory
