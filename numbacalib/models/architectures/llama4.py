"""Llama 4: chunked attention, layers without rotary embedding, and experts with scaled inputs."""

from __future__ import annotations

from typing import Any

from numbacalib.models.description import ATTENTION_BIASES, Architecture, ExpertNames, Options
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.growth import Growth
from numbacalib.models.mixture import Mixture
from numbacalib.models.windows import FULL, windows_of_kinds
from numbacalib.spec.router import Routing

_CHUNKED = "chunked_attention"


def _rotary_layers(fields: Fields, count: int) -> list[bool]:
    """Read the layers with rotary embedding: all but every fourth, or those of a list if not empty."""
    period = fields.integer("no_rope_layer_interval", 1, default=4)
    flags = fields.integers("no_rope_layers", 0, default=None)
    if not flags:
        return [(index + 1) % period != 0 for index in range(count)]
    if len(flags) != count:
        raise fields.error("no_rope_layers", f"{count} entries")
    return [bool(flag) for flag in flags]


def _chunks(fields: Fields, rotary: list[bool]) -> tuple[int | None, ...]:
    """Read the chunks of positions, by default in layers with rotary embedding."""
    size = fields.integer("attention_chunk_size", 1, LARGEST, None)
    if "attention_chunk_size" not in fields:
        size = 8192
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        kinds = [_CHUNKED if rotates and size else FULL for rotates in rotary]
    known = {FULL, _CHUNKED} if size else {FULL}
    if len(kinds) != len(rotary) or not known.issuperset(kinds):
        raise fields.error("layer_types", f"{len(rotary)} of {' and '.join(sorted(known))}")
    return tuple(size if kind == _CHUNKED else None for kind in kinds)


def _mixture(fields: Fields, options: Options) -> Mixture:
    count = fields.integer("num_local_experts", 1, 1 << 16, 16)
    kept = fields.integer("num_experts_per_tok", 1, count, 1)
    step = fields.integer("interleave_moe_layer_step", 1, LARGEST, 1)
    layers = range(options["num_layers"])
    own = fields.integers("moe_layers", 0, default=None)
    chosen: Any = range(step - 1, len(layers), step) if own is None else own
    size = fields.integer("intermediate_size", 1, 1 << 24, 8192)
    return Mixture(
        count,
        size,
        tuple(layer in chosen for layer in layers),
        Routing(kept, "sigmoid", normalized=False),
        shared_size=size,
        scales_inputs=True,
    )


def _llama4(fields: Fields, options: Options) -> Options:
    count = options["num_layers"]
    rotary = _rotary_layers(fields, count)
    found = windows_of_kinds([FULL] * count, None) | {
        "rotary_layers": tuple(rotary),
        "chunks": _chunks(fields, rotary),
        "qk_norm": fields.flag("use_qk_norm", True),
        "mixture": _mixture(fields, options),
    }
    growth = Growth(
        fields.number("attn_scale", 0, 1e3, 0.1), fields.integer("floor_scale", 1, LARGEST, 8192), 1
    )
    if fields.flag("attn_temperature_tuning", True):
        found["still_growth"] = growth
    return found


LLAMA4 = Architecture(
    model_type="llama4_text",
    causal_lm="Llama4ForCausalLM",
    title="Llama 4",
    linears={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "gate": "feed_forward.gate_proj",
        "up": "feed_forward.up_proj",
        "down": "feed_forward.down_proj",
    },
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
    experts=ExpertNames(
        router="feed_forward.router",
        each="feed_forward.experts",
        shared="feed_forward.shared_expert",
        transposed=True,
    ),
    qk_norm="unit",
    norm_after_rotary=True,
    interleaved=True,
    keys={"intermediate_size": "intermediate_size_mlp"},
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    },
    biases=ATTENTION_BIASES,
    harmless=("for_llm_compressor", "router_aux_loss_coef", "router_jitter_noise"),
    read=_llama4,
)
