"""DeepSeek and its relatives: latent attention, and experts after a few dense layers."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.architectures.mixtures import (
    CORRECTED,
    TRAINING,
    deepseek_mixture,
    grouped_mixture,
)
from numbacalib.models.description import (
    ATTENTION_BIASES,
    LATENT,
    PRE_NORMS,
    Architecture,
    ExpertNames,
    Options,
)
from numbacalib.models.fields import Fields
from numbacalib.models.latent import Latent
from numbacalib.models.rope_parameters import yarn_magnitude
from numbacalib.models.windows import no_windows

_NORMS = {
    "attention": PRE_NORMS["attention"],
    "mlp": PRE_NORMS["mlp"],
    "query_latent": "self_attn.q_a_layernorm",
    "latent": "self_attn.kv_a_layernorm",
}
_HARMLESS = (
    *TRAINING,
    "ep_size",  # of training
    "head_dim",  # both follow from other keys
    "qk_head_dim",
)


def latent_attention(
    fields: Fields,
    options: Options,
    query_size: int = 1536,
    *,
    size: int = 512,
    value: int = 128,
    still: int = 128,
) -> Options:
    """Read the sizes of latent attention, and the scale of scores, which includes YaRN's magnitude squared.

    The arguments are defaults of ``q_lora_rank`` (0 for null), ``kv_lora_rank``, ``v_head_dim`` and
    ``qk_nope_head_dim``.
    """
    heads = options["num_heads"]
    if options["num_kv_heads"] != heads:
        raise fields.error("num_key_value_heads", f"num_attention_heads {heads}")
    fields.choice("rope_interleave", (True,), True)
    queries = fields.integer("q_lora_rank", 1, 1 << 20, None)
    latent = Latent(
        fields.integer("kv_lora_rank", 1, 1 << 20, size),
        (queries or 0) if "q_lora_rank" in fields else query_size,
        fields.integer("v_head_dim", 1, 65_536, value),
    )
    head_dim = options["rotary_dim"] + fields.integer("qk_nope_head_dim", 1, 65_536, still)
    scale, scaling = head_dim**-0.5, options["rope_scaling"]
    if weight := scaling.get("mscale_all_dim"):
        scale *= yarn_magnitude(scaling["factor"], weight) ** 2
    return {"latent": latent, "head_dim": head_dim, "attention_scale": scale}


_V2_MIXTURE = {
    "n_routed_experts": 64,
    "moe_intermediate_size": 1407,
    "first_k_dense_replace": 0,
    "n_shared_experts": 2,
}


def _deepseek_v2(fields: Fields, options: Options) -> Options:
    fields.choice("scoring_func", ("softmax",), "softmax")
    fields.choice("moe_layer_freq", (1,), 1)
    mixture = grouped_mixture(fields, options, _V2_MIXTURE)
    return no_windows(fields, options) | latent_attention(fields, options) | {"mixture": mixture}


DEEPSEEK_V2 = Architecture(
    model_type="deepseek_v2",
    causal_lm="DeepseekV2ForCausalLM",
    title="DeepSeek V2 and V2.5",
    linears=LATENT,
    norms=_NORMS,
    experts=ExpertNames(shared="mlp.shared_experts"),
    interleaved=True,
    keys={"head_dim": "qk_rope_head_dim"},
    defaults={"head_dim": 64, "max_position_embeddings": 2048},
    biases=ATTENTION_BIASES,
    harmless=_HARMLESS,
    read=_deepseek_v2,
)

V3_MIXTURE = {
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_shared_experts": 1,
}


def _deepseek_v3(fields: Fields, options: Options) -> Options:
    fields.choice("scoring_func", ("sigmoid",), "sigmoid")
    fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
    fields.choice("moe_layer_freq", (1,), 1)
    mixture = deepseek_mixture(fields, options, V3_MIXTURE)
    return no_windows(fields, options) | latent_attention(fields, options) | {"mixture": mixture}


DEEPSEEK_V3 = replace(
    DEEPSEEK_V2,
    model_type="deepseek_v3",
    causal_lm="DeepseekV3ForCausalLM",
    title="DeepSeek V3 and R1, Moonlight",
    experts=CORRECTED,
    defaults={"head_dim": 64, "max_position_embeddings": 4096},
    biases=ATTENTION_BIASES,
    read=_deepseek_v3,
)

# its files name transformers' class of DeepSeek V3, or it is part of a wrapper
KIMI_K2 = replace(DEEPSEEK_V3, model_type="kimi_k2", causal_lm="", title="Kimi K2")
