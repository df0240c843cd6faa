"""Llama and models that differ from it in biases, windows or names."""

from __future__ import annotations

from dataclasses import replace

from numbacalib.models.description import ATTENTION_BIASES, Architecture, Options
from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.rope_parameters import RopeNames
from numbacalib.models.windows import FULL, SLIDING, kinds_of_layers, window_of, windows_of_kinds

_WINDOW = 4096

LLAMA = Architecture(
    model_type="llama",
    causal_lm="LlamaForCausalLM",
    title="Llama 1 to 3",
    defaults={"max_position_embeddings": 2048},
    biases=ATTENTION_BIASES | {"mlp": "mlp_bias"},
)


def _mistral(fields: Fields, options: Options) -> Options:
    """Read one window for all layers, or ``layer_types`` as in transformers' ministral."""
    window = window_of(fields, _WINDOW)
    if not fields.flag("use_sliding_window", True) and window is not None:
        raise fields.error("use_sliding_window", f"true where sliding_window is {window}")
    fields.integer("max_window_layers", 0, LARGEST, 0)
    return windows_of_kinds(kinds_of_layers(fields, options["num_layers"], window), window)


MISTRAL = Architecture(
    model_type="mistral",
    causal_lm="MistralForCausalLM",
    title="Mistral",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8},
    read=_mistral,
)


def qwen_windows(fields: Fields, options: Options) -> Options:
    """Read a window, if ``use_sliding_window`` is true, for the layers from ``max_window_layers`` on."""
    window = window_of(fields, _WINDOW)
    first = fields.integer("max_window_layers", 0, LARGEST, 28)
    if not fields.flag("use_sliding_window", False):
        window = None
    count = options["num_layers"]
    default = [SLIDING if window and layer >= first else FULL for layer in range(count)]
    return windows_of_kinds(kinds_of_layers(fields, count, window, default), window)


_QWEN_DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 32}

QWEN2 = Architecture(
    model_type="qwen2",
    causal_lm="Qwen2ForCausalLM",
    title="Qwen 1.5 to 2.5",
    defaults=_QWEN_DEFAULTS,
    biases={"attention": True},  # whatever attention_bias says
    harmless=("attention_bias",),
    read=qwen_windows,
)


# M-RoPE of vision models' decoders: its three positions are equal for text.
_MROPE = RopeNames({"mrope": "default"}, ("mrope_section", "mrope_interleaved"))

QWEN2_VL = replace(
    QWEN2, model_type="qwen2_vl_text", title="Qwen 2 VL", rope_names=_MROPE, causal_lm=""
)
QWEN2_5_VL = replace(QWEN2_VL, model_type="qwen2_5_vl_text", title="Qwen 2.5 VL")


def _qwen3(fields: Fields, options: Options) -> Options:
    return qwen_windows(fields, options) | {"qk_norm": True}


QWEN3 = Architecture(
    model_type="qwen3",
    causal_lm="Qwen3ForCausalLM",
    title="Qwen 3",
    defaults=_QWEN_DEFAULTS | {"head_dim": 128},
    biases=ATTENTION_BIASES,
    read=_qwen3,
)

QWEN3_VL = replace(
    QWEN3, model_type="qwen3_vl_text", title="Qwen 3 VL", rope_names=_MROPE, causal_lm=""
)

IQUESTCODER = replace(
    LLAMA,
    model_type="iquestcoder",
    title="IQuest Coder",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    },
)

EXAONE = replace(
    LLAMA,
    model_type="exaone",
    title="EXAONE 3",
    renamed={
        "transformer.wte.": "model.embed_tokens.",
        "transformer.h.": "model.layers.",
        "transformer.ln_f.": "model.norm.",
    },
    linears={
        **{role: f"attn.attention.{role[0]}_proj" for role in ("query", "key", "value")},
        "output": "attn.attention.out_proj",
        "gate": "mlp.c_fc_0",
        "up": "mlp.c_fc_1",
        "down": "mlp.c_proj",
    },
    norms={"attention": "ln_1", "mlp": "ln_2"},
    synonyms={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
    defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    },
    buffers=("attn.attention.rotary.inv_freq",),
    harmless=(*LLAMA.harmless, "embed_dropout"),
)
