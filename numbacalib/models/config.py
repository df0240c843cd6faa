"""What a decoder needs to know about its architecture, read from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numbacalib.models.fields import LARGEST, Fields
from numbacalib.models.rope_parameters import read_rope

__all__ = ["MODEL_TYPES", "ModelConfig"]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""The architectures that `ModelConfig` and the forward pass know."""

# What the architecture's own configuration class in transformers 5 takes where a file leaves an
# option out. Llama has as many key-value heads as heads then; null means that in all of them.
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_WINDOW = 4096
_MAX_WINDOW_LAYERS = 28

_LAYER_TYPES = ("full_attention", "sliding_attention")

# Keys that say nothing about what the model computes: of training, of generation, of the tokenizer,
# of how the file came about.
_HARMLESS = """
architectures auto_map dtype torch_dtype transformers_version name_or_path torchscript
use_cache use_bfloat16 initializer_range pretraining_tp gradient_checkpointing
attn_implementation attention_dropout hidden_dropout hidden_dropout_prob resid_pdrop embd_pdrop
attn_pdrop mlp_dropout classifier_dropout dropout attention_probs_dropout_prob
bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
tokenizer_class prefix model_max_length tokenizer_model_max_length max_sequence_length
max_seq_len max_seq_length seq_length max_length min_length do_sample early_stopping num_beams
num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
return_dict output_hidden_states output_attentions is_decoder chunk_size_feed_forward
id2label label2id num_labels problem_type finetuning_task task_specific_params
is_llama_config transformers.js_config unsloth_version unsloth_fixed
"""


QUANTIZATION = ("quantization_config", "quantization")
"""Where a configuration says how weights are quantized: of all formats, and of MLX."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a Llama-family decoder.

    Attributes
    ----------
    model_type : str
        One of `MODEL_TYPES`.
    hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size : int
        Sizes; ``num_heads`` is a multiple of ``num_kv_heads`` and ``head_dim`` is even.
    max_position_embeddings : int
        Longest sequence, in tokens, that the model is meant for.
    rms_norm_eps : float
        Added to the mean square in every RMSNorm.
    rope_theta : float
        Base of the rotary frequencies.
    rope_scaling : Mapping
        Parameters of the rotary scaling, with ``rope_type``; ``{"rope_type": "default"}`` for none.
    tie_word_embeddings : bool
        Whether the output head is the embedding table.
    attention_bias, output_bias, mlp_bias : bool
        Biases of q/k/v, of the attention's output projection, and of the three MLP projections.
    qk_norm : bool
        RMSNorm over each head of the queries and keys, before the rotary embedding (qwen3).
    sliding_windows : tuple of (int or None)
        For each layer, how many positions a token attends to, itself included; None for all.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a ``config.json`` dictionary, of transformers 4 or 5, as transformers 5 does.

        Every key is either checked, or known to have no effect, or says nothing (null, false,
        empty); any other is refused, since it may change what the model computes.

        Raises
        ------
        ValueError
            One line that names the key, for an architecture or option that the forward pass does
            not know, a missing key, a wrong type, a value out of its range, or sizes that do not
            fit together.
        """
        fields = Fields(config)
        model_type = fields.choice("model_type", MODEL_TYPES)
        fields.choice("hidden_act", ("silu", "swish"), "silu")  # two names of one function
        for key in QUANTIZATION:  # how the weights are stored, which their format reads
            fields.object(key, None)

        num_layers = fields.integer("num_hidden_layers", 1, 10_000)
        num_heads = fields.integer("num_attention_heads", 1, 65_536)
        hidden_size = fields.integer("hidden_size", 1, 1 << 20)
        head_dim = _head_dim(fields, model_type, hidden_size, num_heads)
        max_positions = fields.integer(
            "max_position_embeddings", 1, default=_MAX_POSITIONS[model_type]
        )
        theta, scaling = read_rope(fields, head_dim=head_dim, max_positions=max_positions)
        # Queries, keys and values of qwen2 have biases whatever its file says, mistral's never.
        bias = model_type != "mistral" and fields.flag("attention_bias", False)
        result = cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 24),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_num_kv_heads(fields, model_type, num_heads),
            head_dim=head_dim,
            vocab_size=fields.integer("vocab_size", 1, 1 << 28),
            max_position_embeddings=max_positions,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 0.1, 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=bias or model_type == "qwen2",
            output_bias=bias and model_type != "qwen2",
            mlp_bias=model_type == "llama" and fields.flag("mlp_bias", False),
            qk_norm=model_type == "qwen3",
            sliding_windows=_sliding_windows(fields, model_type, num_layers),
        )
        known = _HARMLESS.split()
        harmless = {key for key in fields if key in known or key.startswith("_")}
        fields.refuse_unread(harmless, f" in a {model_type}")
        return result


def _head_dim(fields: Fields, model_type: str, hidden_size: int, num_heads: int) -> int:
    head_dim = fields.integer("head_dim", 2, 65_536, 128 if model_type == "qwen3" else None)
    if head_dim is None:
        if hidden_size % num_heads:
            raise fields.error("num_attention_heads", f"a divisor of hidden_size {hidden_size}")
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ValueError(f"head_dim: expected an even number, got {head_dim}")
    return int(head_dim)


def _num_kv_heads(fields: Fields, model_type: str, num_heads: int) -> int:
    key = "num_key_value_heads"
    count = fields.integer(key, 1, num_heads, None)
    if count is None:
        count = num_heads if key in fields else _KV_HEADS.get(model_type, num_heads)
    if num_heads % count:
        raise ValueError(
            f"{key}: expected a divisor of num_attention_heads={num_heads}, got {count}"
        )
    return int(count)


def _sliding_windows(fields: Fields, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's window; ``layer_types`` of a mistral are read as transformers' ministral does."""
    key = "sliding_window"
    if model_type == "llama":
        fields.nothing(key, "use_sliding_window")  # runtimes disagree about what they mean there
    window = fields.integer(key, 1, LARGEST, None)
    if key not in fields and model_type != "llama":
        window = _WINDOW
    switch = fields.flag("use_sliding_window", model_type == "mistral")
    first = fields.integer("max_window_layers", 0, LARGEST, _MAX_WINDOW_LAYERS)
    if model_type == "mistral":
        first = 0
        if window is not None and not switch:
            raise fields.error("use_sliding_window", f"true where sliding_window is {window}")
    if not switch:
        window = None
    kinds = fields.texts("layer_types", None)
    if kinds is None:
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(kinds) != num_layers:
        raise ValueError(f"layer_types: expected {num_layers} entries, got {len(kinds)}")
    known = _LAYER_TYPES if window is not None else _LAYER_TYPES[:1]
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        expected = " or ".join(known)
        raise ValueError(
            f"layer_types: expected {expected} in every entry, got {unknown[0][:80]!r}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
