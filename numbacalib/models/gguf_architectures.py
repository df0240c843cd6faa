"""Keys and orders of each architecture's GGUF files beside those that all have.

Read from llama.cpp's ``src/models`` (which keys count, and what stands in their place) and ``conversion``
(what is written), https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numbacalib.models.description import FULL, SLIDING, every
from numbacalib.models.gguf_metadata import Metadata

__all__ = ["GGUF_ARCHITECTURES", "GGUFArchitecture"]

Config = dict[str, Any]
"""Keys of a Hugging Face ``config.json``."""

_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"
_SECTIONS = "rope.dimension_sections"
_SIGMOID = 2
"""Of ``expert_gating_func``."""
_LLAMA4_RUN = 8192
"""Positions that attend to each other in Llama 4, and after which queries of other layers grow."""


def _nothing(options: Metadata, config: Config) -> Config:
    del options, config
    return {}


class GGUFArchitecture(NamedTuple):
    """One architecture as GGUF has it."""

    model_type: str
    """Hugging Face's, unless `variant` says otherwise."""
    paired: bool = False
    """True where rows of queries and keys are in the order of neighbours that turn together."""
    layer_norm: bool = False
    keys: tuple[str, ...] = ()
    """Further keys that `read` and `variant` read."""
    read: Callable[[Metadata, Config], Config] = _nothing
    """From the file's options, and what of the configuration is known, to more of it."""
    variant: Callable[[Metadata], str] | None = None
    """From the file's options to Hugging Face's ``model_type``, where there are several."""

    def type_of(self, options: Metadata) -> str:
        """Return Hugging Face's ``model_type`` of a file with these options."""
        return self.model_type if self.variant is None else self.variant(options)


def _llama_variant(options: Metadata) -> str:
    """Mistral is "llama" in GGUF but for its window, and Mixtral but for its experts."""
    if options.integer("expert_count", 0):
        return "mixtral"
    return "mistral" if options.integer(_WINDOW, 0) else "llama"


def _llama(options: Metadata, config: Config) -> Config:
    window = options.integer(_WINDOW, 0)
    if config["model_type"] == "mixtral":
        return {"sliding_window": window or None} | _counts(options, "num_local_experts")
    if window:
        return {"sliding_window": window, "use_sliding_window": True}
    return {"use_sliding_window": False}


def _counts(options: Metadata, key: str) -> Config:
    """Counts of experts, by the configuration's own key, and of those that a token goes through."""
    return {
        key: options.required("expert_count"),
        "num_experts_per_tok": options.required("expert_used_count"),
    }


def _qwen3_moe(options: Metadata, config: Config) -> Config:
    del config
    return _counts(options, "num_experts") | {
        "moe_intermediate_size": options.required("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "use_sliding_window": False,
    }


def _qwen2_moe(options: Metadata, config: Config) -> Config:
    shared = options.required("expert_shared_feed_forward_length")
    own = {"shared_expert_intermediate_size": shared, "norm_topk_prob": False}
    return _qwen3_moe(options, config) | own


def _granitemoe(options: Metadata, config: Config) -> Config:
    return _granite(options, config) | _counts(options, "num_local_experts")


def _sigmoid(options: Metadata) -> None:
    """Refuse experts that are scored otherwise."""
    if options.integer("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise options.error("expert_gating_func", f"{_SIGMOID}, sigmoids")


def _glm4_moe(options: Metadata, config: Config) -> Config:
    del config
    _sigmoid(options)
    return _experts_behind_dense_layers(options)


def _gpt_oss(options: Metadata, config: Config) -> Config:
    """An expert is as wide as the configuration says of MLPs; gates are clamped as published ones."""
    found = _counts(options, "num_local_experts") | _windows(options, config, 0, 2)
    width = options.required("expert_feed_forward_length")
    return found | _parameters(config) | {"intermediate_size": width}


def _parameters(config: Config) -> Config:
    """The rotary embedding's, where an architecture wants them in one place; scaling may be added."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}


def _llama4(options: Metadata, config: Config) -> Config:
    """Runs of positions, the layers that do not turn and the growth of queries are fixed."""
    del config
    if not options.integer(_WINDOW, _LLAMA4_RUN):
        raise options.error(_WINDOW, "runs of positions in three layers of four")
    step = options.required("interleave_moe_layer_step")
    count = options.required("expert_count")
    return _counts(options, "num_local_experts") | {
        "intermediate_size": options.required("expert_feed_forward_length"),
        "interleave_moe_layer_step": step,
        "use_qk_norm": count != 128,  # by which llama.cpp tells the two published models apart
        "attention_chunk_size": _LLAMA4_RUN,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": _LLAMA4_RUN,
    }


def _mistral3(options: Metadata, config: Config) -> Config:
    """Queries grow by the length of the context before its scaling."""
    beta = options.number("attention.temperature_scale", 0.0)
    original = options.integer("rope.scaling.original_context_length", 0)
    found = {"llama_4_scaling_beta": beta, "original_max_position_embeddings": original}
    if not beta or not original:
        raise options.error("attention.temperature_scale", "a growth of queries beside YaRN")
    return {"rope_parameters": _parameters(config)["rope_parameters"] | found}


def _sections(options: Metadata, config: Config) -> Config:
    """The parts of a head that turn by an image's three positions, which are one for text."""
    sections = [int(length) for length in options.integers(_SECTIONS)]
    parameters = _parameters(config)["rope_parameters"] | {"mrope_section": sections}
    return {"rope_parameters": parameters, "use_sliding_window": False}


def _glm4_variant(options: Metadata) -> str:
    """A decoder that sees has parts of heads for an image's positions."""
    return "glm4v_text" if options.is_list(_SECTIONS) else "glm4"


def _glm4(options: Metadata, config: Config) -> Config:
    return _sections(options, config) if config["model_type"] == "glm4v_text" else {}


def _latent_variant(options: Metadata) -> str:
    """The second scores experts by a softmax, the third by sigmoids; one has none."""
    if not options.integer("expert_count", 0):
        return "youtu"
    sigmoid = options.integer("expert_gating_func", 0) == _SIGMOID
    return "deepseek_v3" if sigmoid else "deepseek_v2"


def _deepseek2(options: Metadata, config: Config) -> Config:
    rotary = options.required("rope.dimension_count")
    length = options.integer("attention.key_length", 0)
    values = options.integer("attention.value_length", 0)
    found: Config = {
        "q_lora_rank": options.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": options.required("attention.kv_lora_rank"),
        "qk_nope_head_dim": options.integer("attention.key_length_mla", length) - rotary,
        "v_head_dim": options.integer("attention.value_length_mla", values),
    }
    if config["model_type"] == "youtu":
        return found
    found |= _experts_behind_dense_layers(options)
    if config["model_type"] == "deepseek_v3":
        return found | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    if options.boolean("expert_weights_norm", False):
        raise options.error("expert_weights_norm", "false beside a softmax")
    if found["n_group"] > 1:
        raise options.error("expert_group_count", "1 beside a softmax")
    return found | {"topk_method": "greedy"}


def _experts_behind_dense_layers(options: Metadata) -> Config:
    return _counts(options, "n_routed_experts") | {
        "moe_intermediate_size": options.required("expert_feed_forward_length"),
        "n_shared_experts": options.required("expert_shared_count"),
        "first_k_dense_replace": options.integer("leading_dense_block_count", 0),
        "norm_topk_prob": options.boolean("expert_weights_norm", False),
        "routed_scaling_factor": options.number("expert_weights_scale", 0.0) or 1.0,
        "n_group": options.integer("expert_group_count", 0) or 1,
        "topk_group": options.integer("expert_group_used_count", 0) or 1,
    }


def _dots1(options: Metadata, config: Config) -> Config:
    del config
    _sigmoid(options)
    return _experts_behind_dense_layers(options) | {"sliding_window": None}


def _afmoe(options: Metadata, config: Config) -> Config:
    """Embeddings are scaled always."""
    _sigmoid(options)
    found = _experts_behind_dense_layers(options)
    windows = _windows(options, config, 0, 4)
    return (
        _counts(options, "num_experts")
        | windows
        | {
            "moe_intermediate_size": found["moe_intermediate_size"],
            "num_shared_experts": found["n_shared_experts"],
            "num_dense_layers": found["first_k_dense_replace"],
            "route_norm": found["norm_topk_prob"],
            "route_scale": found["routed_scaling_factor"],
            "mup_enabled": True,
        }
    )


def _exaone_moe(options: Metadata, config: Config) -> Config:
    _sigmoid(options)
    found = _experts_behind_dense_layers(options)
    shared = found.pop("n_shared_experts")
    return found | {"num_shared_experts": shared} | _windows(options, config, 128, 4)


def _ernie4_5_moe(options: Metadata, config: Config) -> Config:
    del config
    size = options.required("expert_feed_forward_length")
    if options.integer("interleave_moe_layer_step", 1) != 1:
        raise options.error("interleave_moe_layer_step", "1, experts in all layers after the first")
    return {
        "moe_num_experts": options.required("expert_count"),
        "moe_k": options.required("expert_used_count"),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": options.integer("expert_shared_feed_forward_length", 0) // size,
        "moe_layer_start_index": options.integer("leading_dense_block_count", 0),
    }


def _minimax_m2(options: Metadata, config: Config) -> Config:
    """All of an expert's sizes are the MLP's."""
    del config
    _sigmoid(options)
    return _counts(options, "num_local_experts")


def _olmoe(options: Metadata, config: Config) -> Config:
    del config
    return _counts(options, "num_experts")


def _qwen3_vl_moe(options: Metadata, config: Config) -> Config:
    return _qwen3_moe(options, config) | _sections(options, config)


def _falcon(options: Metadata, config: Config) -> Config:
    """All have the second version's heads of keys, of which the first have one."""
    del options, config
    return {"new_decoder_architecture": True, "parallel_attn": True}


def _gptneox(options: Metadata, config: Config) -> Config:
    del config
    return {"use_parallel_residual": options.boolean("use_parallel_residual", True)}


def _windows(options: Metadata, config: Config, default: int, period: int) -> Config:
    """Windows of the layers that a pattern names: a flag each, or all but every so many."""
    window = options.integer(_WINDOW, default)
    count = config["num_hidden_layers"]
    if not window:
        return {"sliding_window": None, "layer_types": [FULL] * count}
    if options.is_list(_PATTERN):
        flags = options.flags(_PATTERN)
        if len(flags) != count:
            raise options.error(_PATTERN, f"a flag for each of {count} blocks")
        return {
            "sliding_window": window,
            "layer_types": [SLIDING if flag else FULL for flag in flags],
        }
    period = options.integer(_PATTERN, period)
    if period < 1:
        raise options.error(_PATTERN, "a positive number")
    return {"sliding_window": window, "layer_types": every(count, period)}


def _gemma(options: Metadata, config: Config, largest: int, default: int, period: int) -> Config:
    """The factor of scores is the head's but for the largest model, which is known by its layers."""
    head = config["head_dim"]
    if config["num_hidden_layers"] == largest:
        head = config["hidden_size"] // config["num_attention_heads"]
    caps = {
        "final_logit_softcapping": options.number("final_logit_softcapping", 0.0) or None,
        "query_pre_attn_scalar": head,
    }
    return _windows(options, config, default, period) | caps


def _gemma2(options: Metadata, config: Config) -> Config:
    found = _gemma(options, config, 46, 4096, 2)
    cap = options.number("attn_logit_softcapping", 50.0)
    final = options.number("final_logit_softcapping", 30.0)
    return found | {"attn_logit_softcapping": cap, "final_logit_softcapping": final}


def _gemma3(options: Metadata, config: Config) -> Config:
    base = options.number("rope.freq_base_swa", 1e4)
    return _gemma(options, config, 62, 0, 6) | {"rope_local_base_freq": base}


def _phi3(options: Metadata, config: Config) -> Config:
    del config
    return {"sliding_window": options.integer(_WINDOW, 0) or None}


def _granite(options: Metadata, config: Config) -> Config:
    del config
    if not options.boolean("rope.scaling.finetuned", True):
        raise options.error("rope.scaling.finetuned", "true: no rotary embedding is not supported")
    head = {"attention_multiplier": options.number("attention.scale", 0.0)}
    return {
        "logits_scaling": options.number("logit_scale", 1.0),
        "residual_multiplier": options.number("residual_scale", 0.0) or 1.0,
        "embedding_multiplier": options.number("embedding_scale", 0.0) or 1.0,
    } | {key: value for key, value in head.items() if value}


def _olmo_variant(options: Metadata) -> str:
    """The third is "olmo2" in GGUF, but for its windows."""
    return "olmo3" if options.integer(_WINDOW, 0) else "olmo2"


def _olmo(options: Metadata, config: Config) -> Config:
    if config["model_type"] == "olmo2":
        return {}
    base = options.number("rope.freq_base_swa", config["rope_theta"])
    return _windows(options, config, 0, 4) | {"rope_local_base_freq": base}


def _cohere(options: Metadata, config: Config) -> Config:
    del config
    return {"logit_scale": options.number("logit_scale", 1.0)}


def _cohere2(options: Metadata, config: Config) -> Config:
    return _cohere(options, config) | _windows(options, config, 0, 4)


def _exaone4(options: Metadata, config: Config) -> Config:
    """Only the largest model has windows."""
    if config["num_hidden_layers"] != 64:
        return {"sliding_window": None, "layer_types": [FULL] * config["num_hidden_layers"]}
    return _windows(options, config, 4096, 4)


_WINDOWS = (_WINDOW, _PATTERN)
_FACTORS = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale")
_EXPERTS = ("expert_count", "expert_used_count")
_SPARSE = (
    *(*_EXPERTS, "expert_feed_forward_length", "expert_shared_count", "expert_gating_func"),
    *("leading_dense_block_count", "expert_weights_norm", "expert_weights_scale"),
    *("expert_group_count", "expert_group_used_count"),
)
_LATENT = (
    *("attention.q_lora_rank", "attention.kv_lora_rank"),
    *("attention.key_length_mla", "attention.value_length_mla"),
)
GGUF_ARCHITECTURES = {
    "afmoe": GGUFArchitecture("afmoe", keys=(*_SPARSE, *_WINDOWS), read=_afmoe),
    "arcee": GGUFArchitecture("arcee", paired=True),
    "chatglm": GGUFArchitecture("glm"),
    "cohere2": GGUFArchitecture(
        "cohere2", layer_norm=True, keys=("logit_scale", *_WINDOWS), read=_cohere2
    ),
    "command-r": GGUFArchitecture("cohere", layer_norm=True, keys=("logit_scale",), read=_cohere),
    "deepseek2": GGUFArchitecture(
        "deepseek_v3", keys=(*_SPARSE, *_LATENT), read=_deepseek2, variant=_latent_variant
    ),
    "dots1": GGUFArchitecture("dots1", keys=_SPARSE, read=_dots1),
    "ernie4_5": GGUFArchitecture("ernie4_5"),
    "ernie4_5-moe": GGUFArchitecture(
        "ernie4_5_moe",
        keys=(*_SPARSE, "expert_shared_feed_forward_length", "interleave_moe_layer_step"),
        read=_ernie4_5_moe,
    ),
    "exaone-moe": GGUFArchitecture(
        "exaone_moe",
        keys=(*_SPARSE, *_WINDOWS, "expert_shared_feed_forward_length"),
        read=_exaone_moe,
    ),
    "exaone4": GGUFArchitecture("exaone4", keys=_WINDOWS, read=_exaone4),
    "falcon": GGUFArchitecture("falcon", layer_norm=True, read=_falcon),
    "gemma": GGUFArchitecture("gemma"),
    "gemma2": GGUFArchitecture(
        "gemma2",
        keys=(*_WINDOWS, "attn_logit_softcapping", "final_logit_softcapping"),
        read=_gemma2,
    ),
    "gemma3": GGUFArchitecture(
        "gemma3_text",
        keys=(*_WINDOWS, "rope.freq_base_swa", "final_logit_softcapping"),
        read=_gemma3,
    ),
    "glm4": GGUFArchitecture("glm4", keys=(_SECTIONS,), read=_glm4, variant=_glm4_variant),
    "glm4moe": GGUFArchitecture(
        "glm4_moe",
        keys=_SPARSE,
        read=_glm4_moe,
    ),
    "gpt-oss": GGUFArchitecture(
        "gpt_oss",
        keys=(*_EXPERTS, *_WINDOWS, "expert_feed_forward_length"),
        read=_gpt_oss,
    ),
    "gpt2": GGUFArchitecture("gpt2", layer_norm=True),
    "gptneox": GGUFArchitecture(
        "gpt_neox", layer_norm=True, keys=("use_parallel_residual",), read=_gptneox
    ),
    "granite": GGUFArchitecture("granite", paired=True, keys=_FACTORS, read=_granite),
    "granitemoe": GGUFArchitecture(
        "granitemoe", paired=True, keys=(*_FACTORS, *_EXPERTS), read=_granitemoe
    ),
    "hunyuan-dense": GGUFArchitecture("hunyuan_v1_dense"),
    "llama": GGUFArchitecture(
        "llama", paired=True, keys=(_WINDOW, *_EXPERTS), read=_llama, variant=_llama_variant
    ),
    "llama4": GGUFArchitecture(
        "llama4_text",
        keys=(*_EXPERTS, _WINDOW, "expert_feed_forward_length", "interleave_moe_layer_step"),
        read=_llama4,
    ),
    "minimax-m2": GGUFArchitecture(
        "minimax_m2",
        keys=(*_EXPERTS, "expert_feed_forward_length", "expert_gating_func"),
        read=_minimax_m2,
    ),
    "mistral3": GGUFArchitecture(
        "ministral3", paired=True, keys=("attention.temperature_scale",), read=_mistral3
    ),
    "nemotron": GGUFArchitecture("nemotron", layer_norm=True),
    "olmo2": GGUFArchitecture(
        "olmo2", keys=(*_WINDOWS, "rope.freq_base_swa"), read=_olmo, variant=_olmo_variant
    ),
    "olmoe": GGUFArchitecture("olmoe", keys=_EXPERTS, read=_olmoe),
    "phi2": GGUFArchitecture("phi", layer_norm=True),
    "phi3": GGUFArchitecture("phi3", keys=(_WINDOW,), read=_phi3),
    "qwen2": GGUFArchitecture("qwen2"),
    "qwen2moe": GGUFArchitecture(
        "qwen2_moe",
        keys=(*_EXPERTS, "expert_feed_forward_length", "expert_shared_feed_forward_length"),
        read=_qwen2_moe,
    ),
    "qwen2vl": GGUFArchitecture("qwen2_vl_text", keys=(_SECTIONS,), read=_sections),
    "qwen3": GGUFArchitecture("qwen3"),
    "qwen3moe": GGUFArchitecture(
        "qwen3_moe", keys=(*_EXPERTS, "expert_feed_forward_length"), read=_qwen3_moe
    ),
    "qwen3vl": GGUFArchitecture(
        "qwen3_vl_text", keys=(_SECTIONS, "n_deepstack_layers"), read=_sections
    ),
    "qwen3vlmoe": GGUFArchitecture(
        "qwen3_vl_moe_text",
        keys=(*_EXPERTS, _SECTIONS, "expert_feed_forward_length", "n_deepstack_layers"),
        read=_qwen3_vl_moe,
    ),
    "seed_oss": GGUFArchitecture("seed_oss"),
    "smollm3": GGUFArchitecture("smollm3", paired=True),
    "stablelm": GGUFArchitecture("stablelm", layer_norm=True),
    "starcoder": GGUFArchitecture("gpt_bigcode", layer_norm=True),
    "starcoder2": GGUFArchitecture("starcoder2", layer_norm=True),
}
"""By ``general.architecture``."""
