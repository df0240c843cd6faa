"""GPT-2, OPT, GPT-NeoX and Falcon: LayerNorm, no gate, learned positions, or one layer before attention."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.description import SEPARATE, Architecture, Options, no_windows
from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import Words

_ALL = ("attention", "output", "mlp")


def _learned(fields: Fields, options: Options, first: int) -> Options:
    """Learned positions in the place of a rotary embedding, the first tokens' in the row `first`."""
    del fields
    return {
        "rotary_layers": (False,) * options["num_layers"],
        "positions": options["max_position_embeddings"] + first,
        "first_position": first,
    }


def _gpt2(fields: Fields, options: Options) -> Options:
    fields.choice("scale_attn_weights", (True,), True)
    fields.nothing("scale_attn_by_inverse_layer_idx", "add_cross_attention")
    return no_windows(fields, options) | _learned(fields, options, first=0)


_GPT2_NAMES = {
    "wte.": "model.embed_tokens.",
    "wpe.": "model.embed_positions.",
    "h.": "model.layers.",
    "ln_f.": "model.norm.",
}

GPT2 = Architecture(
    model_type="gpt2",
    causal_lm="GPT2LMHeadModel",
    title="GPT-2",
    renamed={f"transformer.{name}": ours for name, ours in _GPT2_NAMES.items()} | _GPT2_NAMES,
    linears=dict.fromkeys(("query", "key", "value"), "attn.c_attn")
    | {"output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    norms={"attention": "ln_1", "mlp": "ln_2"},
    transposed=True,
    buffers=(".attn.bias",),
    norm="layer",
    norm_bias=True,
    keys={
        "hidden_act": "activation_function",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "hidden_act": "gelu_new",
        "intermediate_factor": 4,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    biases=dict.fromkeys(_ALL, True),
    harmless=(
        "n_ctx",
        "reorder_and_upcast_attn",  # of 16-bit training
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    read=_gpt2,
)


def _opt(fields: Fields, options: Options) -> Options:
    """Norms before attention and MLP; those of the 350M stand after, with embeddings of another size."""
    hidden = options["hidden_size"]
    fields.choice("do_layer_norm_before", (True,), True)
    fields.choice("word_embed_proj_dim", (hidden,), None)
    fields.choice("layer_norm_elementwise_affine", (True,), True)
    fields.nothing("_remove_final_layer_norm")
    return no_windows(fields, options) | _learned(fields, options, first=2)


_OPT_NAMES = {
    "embed_tokens.": "model.embed_tokens.",
    "embed_positions.": "model.embed_positions.",
    "layers.": "model.layers.",
    "final_layer_norm.": "model.norm.",
}

OPT = Architecture(
    model_type="opt",
    causal_lm="OPTForCausalLM",
    title="OPT",
    renamed={f"model.decoder.{name}": ours for name, ours in _OPT_NAMES.items()}
    | {f"decoder.{name}": ours for name, ours in _OPT_NAMES.items()},
    linears={role: SEPARATE[role] for role in ("query", "key", "value")}
    | {"output": "self_attn.out_proj", "up": "fc1", "down": "fc2"},
    norms={"attention": "self_attn_layer_norm", "mlp": "final_layer_norm"},
    norm="layer",
    norm_bias=True,
    keys={"hidden_act": "activation_function", "intermediate_size": "ffn_dim"},
    defaults={
        "hidden_act": "relu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "enable_bias": True,
    },
    biases=dict.fromkeys(_ALL, "enable_bias"),
    harmless=("activation_dropout", "init_std", "layerdrop"),
    read=_opt,
)


def _gpt_neox(fields: Fields, options: Options) -> Options:
    parallel = fields.flag("use_parallel_residual", True)
    return no_windows(fields, options) | {"variant": "" if parallel else "sequential"}


_NEOX_NAMES = {
    "embed_in.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "final_layer_norm.": "model.norm.",
}
_UP_DOWN = {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}

_NEOX = Architecture(
    model_type="gpt_neox",
    causal_lm="GPTNeoXForCausalLM",
    title="GPT-NeoX and Pythia",
    renamed={f"gpt_neox.{name}": ours for name, ours in _NEOX_NAMES.items()}
    | _NEOX_NAMES
    | {"embed_out.": "lm_head."},
    linears=_UP_DOWN
    | {"query_key_value": "attention.query_key_value", "output": "attention.dense"},
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
    buffers=(".attention.bias",),
    norm="layer",
    norm_bias=True,
    parallel=True,
    rope_words=Words(theta="rotary_emb_base", share="rotary_pct"),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "attention_bias": True,
    },
    biases={"attention": "attention_bias", "output": "attention_bias", "mlp": True},
    read=_gpt_neox,
)
GPT_NEOX = replace(_NEOX, variants={"sequential": replace(_NEOX, parallel=False)})


def _falcon(fields: Fields, options: Options) -> Options:
    """Norms and heads of keys, which four flags are about."""
    if fields.flag("alibi", False):
        raise fields.error("alibi", "false: attention here has no biases by distance")
    new = fields.flag("new_decoder_architecture", False)
    parallel = fields.flag("parallel_attn", True)
    single = fields.flag("multi_query", True)
    norms = fields.integer("num_ln_in_parallel_attn", 1, 2, None) or (2 if new else 1)
    if new and not parallel:
        raise fields.error("parallel_attn", "true beside new_decoder_architecture")
    if norms == 2 and not new:
        raise fields.error("num_ln_in_parallel_attn", "1 without new_decoder_architecture")
    variant = "two norms" if norms == 2 else "" if parallel else "sequential"
    keys = options["num_kv_heads"] if new else 1 if single else options["num_heads"]
    return no_windows(fields, options) | {"variant": variant, "num_kv_heads": keys}


_FALCON_NAMES = {
    "word_embeddings.": "model.embed_tokens.",
    "h.": "model.layers.",
    "ln_f.": "model.norm.",
}

_FALCON = Architecture(
    model_type="falcon",
    causal_lm="FalconForCausalLM",
    title="Falcon 1 and 2",
    renamed={f"transformer.{name}": ours for name, ours in _FALCON_NAMES.items()} | _FALCON_NAMES,
    linears=_UP_DOWN
    | {"query_key_value": "self_attention.query_key_value", "output": "self_attention.dense"},
    norms={"attention": "input_layernorm"},
    norm="layer",
    norm_bias=True,
    parallel=True,
    keys={
        "hidden_act": "activation",
        "intermediate_size": "ffn_hidden_size",
        "num_key_value_heads": "num_kv_heads",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "hidden_act": "gelu",
        "intermediate_factor": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    biases=dict.fromkeys(_ALL, "bias"),
    harmless=("ff_factor",),
    read=_falcon,
)
_SEQUENTIAL = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
FALCON = replace(
    _FALCON,
    variants={
        "two norms": replace(_FALCON, norms={"attention": "ln_attn", "mlp": "ln_mlp"}),
        "sequential": replace(_FALCON, norms=_SEQUENTIAL, parallel=False),
    },
)
