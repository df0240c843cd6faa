"""GPT-2 and its relatives, OPT, GPT-NeoX and Falcon: LayerNorm, ungated MLPs, or learned positions."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.description import ATTENTION_BIASES, SEPARATE, Architecture, Options
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import no_windows

_ALL = ("attention", "output", "mlp")


def _learned(fields: Fields, options: Options, first: int) -> Options:
    """Return learned positions instead of a rotary embedding; row `first` is the first token's."""
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
        *("n_ctx", "n_special", "predict_special_tokens"),
        "reorder_and_upcast_attn",  # of 16-bit training
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    read=_gpt2,
)


def _gpt_bigcode(fields: Fields, options: Options) -> Options:
    """Read a single key-value head (MQA); models with as many as query heads order rows otherwise."""
    fields.choice("multi_query", (True,), True)
    return _gpt2(fields, options) | {"num_kv_heads": 1}


GPT_BIGCODE = replace(
    GPT2,
    model_type="gpt_bigcode",
    causal_lm="GPTBigCodeForCausalLM",
    title="StarCoder 1 and SantaCoder",
    transposed=False,
    defaults={**GPT2.defaults, "hidden_act": "gelu_pytorch_tanh"},
    harmless=(
        *GPT2.harmless,
        "attention_softmax_in_fp32",  # always so here
        "scale_attention_softmax_in_fp32",
        "inference_runner",  # and other keys of generation
        "max_batch_size",
        "max_sequence_length",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "validate_runner_input",
    ),
    read=_gpt_bigcode,
)


def _gpt_neo(fields: Fields, options: Options) -> Options:
    """Read windows of the local layers; scores are not scaled."""
    window, count = fields.integer("window_size", 1, LARGEST, 256), options["num_layers"]
    kinds = fields.texts("attention_layers")
    if len(kinds) != count or set(kinds) - {"global", "local"}:
        raise fields.error("attention_layers", f"global or local for each of {count} layers")
    windows = tuple(window if kind == "local" else None for kind in kinds)
    return _learned(fields, options, first=0) | {"sliding_windows": windows, "attention_scale": 1.0}


GPT_NEO = replace(
    GPT2,
    model_type="gpt_neo",
    causal_lm="GPTNeoForCausalLM",
    title="GPT-Neo",
    linears={
        "query": "attn.attention.q_proj",
        "key": "attn.attention.k_proj",
        "value": "attn.attention.v_proj",
        "output": "attn.attention.out_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    transposed=False,
    buffers=(".attn.attention.bias",),
    keys={
        "hidden_act": "activation_function",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={**GPT2.defaults, "max_position_embeddings": 2048},
    biases={"output": True, "mlp": True},
    harmless=(*GPT2.harmless, "attention_types", "embed_dropout", "resid_dropout"),
    read=_gpt_neo,
)


def _gptj(fields: Fields, options: Options) -> Options:
    """Read the rotated dimensions of a head; the output head has a bias."""
    fields.choice("scale_attn_weights", (True,), True)
    turning = fields.integer("rotary_dim", 2, options["head_dim"], 64)
    if turning % 2:
        raise fields.error("rotary_dim", "an even number")
    return no_windows(fields, options) | {"rotary_dim": turning, "head_bias": True}


GPTJ = replace(
    GPT2,
    model_type="gptj",
    causal_lm="GPTJForCausalLM",
    title="GPT-J",
    linears={
        "query": "attn.q_proj",
        "key": "attn.k_proj",
        "value": "attn.v_proj",
        "output": "attn.out_proj",
        "up": "mlp.fc_in",
        "down": "mlp.fc_out",
    },
    norms={"attention": "ln_1"},
    transposed=False,
    parallel=True,
    interleaved=True,
    defaults={
        "hidden_act": "gelu_new",
        "intermediate_factor": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    },
    biases={"mlp": True},
    harmless=(*GPT2.harmless, "rotary"),
    read=_gptj,
)


def _opt(fields: Fields, options: Options) -> Options:
    """Read pre-norm models, and refuse the 350M model's post-norms and smaller embeddings."""
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
    rope_names=RopeNames(theta="rotary_emb_base", share="rotary_pct"),
    keys={"rms_norm_eps": "layer_norm_eps"},
    defaults={
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "attention_bias": True,
    },
    biases=ATTENTION_BIASES | {"mlp": True},
    read=_gpt_neox,
)
GPT_NEOX = replace(_NEOX, variants={"sequential": replace(_NEOX, parallel=False)})


def _falcon(fields: Fields, options: Options) -> Options:
    """Read the form of norms and the number of key-value heads from four flags."""
    if fields.flag("alibi", False):
        raise fields.error("alibi", "false: ALiBi is not supported")
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
