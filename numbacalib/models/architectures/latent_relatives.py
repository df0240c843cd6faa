"""Relatives of DeepSeek V3 with latent attention: some have sparse attention or growing queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numbacalib.models.architectures.latent import DEEPSEEK_V3, V3_MIXTURE, latent_attention
from numbacalib.models.architectures.mixtures import TRAINING, deepseek_mixture, layers_of_kinds
from numbacalib.models.architectures.windowed import growth_of_queries
from numbacalib.models.description import ATTENTION_BIASES, ExpertNames, Options
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import no_windows

_INDEXED = "indexed_attention", "deepseek_sparse_attention"
"""Names of the only kind of layer; files from before transformers 5.12 have the second."""


def _indexed(
    fields: Fields, options: Options, defaults: Mapping[str, Any], **sizes: int
) -> Options:
    """Read latent attention to positions that an indexer chooses: all positions of short sequences."""
    count = options["num_layers"]
    kinds = fields.texts("layer_types", [_INDEXED[0]] * count)
    if len(kinds) != count or set(kinds) - set(_INDEXED):
        raise fields.error("layer_types", f"{_INDEXED[0]} for each of {count} layers")
    fields.choice("scoring_func", ("sigmoid",), "sigmoid")
    fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
    fields.choice("moe_layer_freq", (1,), 1)
    fields.nothing("mlp_bias")
    mixture = deepseek_mixture(fields, options, {**V3_MIXTURE, **defaults})
    found = latent_attention(fields, options, **sizes)
    if not found["latent"].query_size:
        raise fields.error("q_lora_rank", "a number, since the indexer reads that vector")
    return found | {
        "mixture": layers_of_kinds(fields, options, mixture),
        "selected": fields.integer("index_topk", 1, LARGEST, 2048),
        "sliding_windows": (None,) * count,
    }


def _deepseek_v32(fields: Fields, options: Options) -> Options:
    return _indexed(fields, options, {})


DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    model_type="deepseek_v32",
    causal_lm="DeepseekV32ForCausalLM",
    title="DeepSeek V3.2",
    selector="self_attn.indexer.",
    defaults={"head_dim": 64, "max_position_embeddings": 163840},
    harmless=(*DEEPSEEK_V3.harmless, "index_head_dim", "index_n_heads"),
    read=_deepseek_v32,
)


def _glm_moe_dsa(fields: Fields, options: Options) -> Options:
    groups = {"n_group": 1, "topk_group": 1}
    return _indexed(fields, options, groups, query_size=2048, value=256, still=192)


GLM_MOE_DSA = replace(
    DEEPSEEK_V32,
    model_type="glm_moe_dsa",
    causal_lm="GlmMoeDsaForCausalLM",
    title="GLM 5",
    defaults={"head_dim": 64, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5},
    harmless=(
        *DEEPSEEK_V32.harmless,
        "index_share_for_mtp_iteration",  # of multi-token prediction (MTP) layers
        "index_skip_topk_offset",  # these say which layers have their own indexers
        "index_topk_freq",
        "index_topk_pattern",
        "indexer_rope_interleave",
        "indexer_types",
    ),
    fixed={"moe_router_dtype": ("float32",)},
    read=_glm_moe_dsa,
)


def _sarvam_mla(fields: Fields, options: Options) -> Options:
    own = {"n_routed_experts": 128, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    mixture = deepseek_mixture(fields, options, V3_MIXTURE | own)
    found = no_windows(fields, options) | latent_attention(fields, options, 0)
    return found | {"mixture": mixture}


SARVAM_MLA = replace(
    DEEPSEEK_V3,
    model_type="sarvam_mla",
    causal_lm="DeepseekV3ForCausalLM",
    title="Sarvam 105B",
    harmless=(*DEEPSEEK_V3.harmless, "num_mtp_layers"),
    read=_sarvam_mla,
)


def _minicpm3(fields: Fields, options: Options) -> Options:
    """Read latent attention, and the factors of embeddings, of sublayers' outputs and of logits."""
    hidden, count = options["hidden_size"], options["num_layers"]
    depth = fields.number("scale_depth", 1e-6, 1e6, None if "scale_depth" in fields else 1.4)
    base = fields.integer("dim_model_base", 1, LARGEST, None if "dim_model_base" in fields else 256)
    values = hidden // options["num_heads"]
    found = no_windows(fields, options)
    found |= latent_attention(fields, options, 768, size=256, value=values, still=64)
    return found | {
        "embedding_scale": fields.number("scale_emb", 1e-6, 1e6, 12.0),
        "residual_scale": depth / count**0.5 if depth else 1.0,
        "logit_scale": base / hidden if base else 1.0,
    }


MINICPM3 = replace(
    DEEPSEEK_V3,
    model_type="minicpm3",
    causal_lm="MiniCPM3ForCausalLM",
    title="MiniCPM 3",
    experts=None,
    interleaved=False,
    defaults={
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 40,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    biases=ATTENTION_BIASES | {"mlp": "mlp_bias"},
    read=_minicpm3,
)

_MISTRAL4 = {
    "n_routed_experts": 128,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_shared_experts": 1,
}


def _mistral4(fields: Fields, options: Options) -> Options:
    """Read the growth of whole queries, not only of their rotated part, and softmax routing."""
    turning = options["rotary_dim"]
    if fields.integer("qk_rope_head_dim", 2, 65_536, 64) != turning:
        raise fields.error("qk_rope_head_dim", f"head_dim times partial_rotary_factor, {turning}")
    for key in ("n_group", "topk_group"):
        fields.choice(key, (1,), 1)
    growth = growth_of_queries(fields)
    mixture = deepseek_mixture(fields, options, _MISTRAL4, "softmax")
    found = no_windows(fields, options)
    found |= latent_attention(fields, options, 1024, size=256, still=64)
    return found | {"mixture": mixture, "query_growth": growth}


MISTRAL4 = replace(
    DEEPSEEK_V3,
    model_type="mistral4",
    causal_lm="",
    title="Mistral Small 4",
    experts=ExpertNames(shared="mlp.shared_experts"),
    rope_names=RopeNames(others=("llama_4_scaling_beta", "max_position_embeddings")),
    keys={},
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 1048576,
        "partial_rotary_factor": 0.5,
    },
    harmless=(*TRAINING, "qk_head_dim"),
    read=_mistral4,
)
