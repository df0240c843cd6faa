"""Configuration of a decoder, read from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.config_shape import read_biases, read_shape
from numbacalib.models.delta_net import DeltaNet
from numbacalib.models.description import Architecture
from numbacalib.models.fields import Fields
from numbacalib.models.growth import Growth
from numbacalib.models.latent import Latent
from numbacalib.models.mixture import Mixture
from numbacalib.models.short_convolution import ShortConvolution
from numbacalib.models.state_space import StateSpace
from numbacalib.models.wrappers import QUANTIZATION, WRAPPERS, decoder_config

__all__ = ["ModelConfig", "Rope"]

# Keys without effect on the forward pass: of training, generation, the tokenizer and the file's origin.
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
is_llama_config transformers.js_config unsloth_version unsloth_fixed neftune_noise_alpha
is_composition
"""


class Rope(NamedTuple):
    """A rotary embedding.

    Attributes
    ----------
    theta : float
        Base of its frequencies.
    scaling : Mapping
        Parameters of the scaling, with ``rope_type``.
    dim : int
        Number of a head's dimensions that are rotated, the first ones.
    max_position_embeddings : int
        Longest sequence that the model is meant for.
    growth : Growth, optional
        Position-dependent scale of queries.
    """

    theta: float
    scaling: Mapping[str, Any]
    dim: int
    max_position_embeddings: int
    growth: Growth | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a decoder.

    Attributes
    ----------
    model_type : str
        A key of `ARCHITECTURES`.
    variant : str
        A key of the architecture's `variants`, or "" for none.
    hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size : int
        Sizes; ``num_heads`` is a multiple of ``num_kv_heads`` and ``head_dim`` is even.
    max_position_embeddings : int
        Longest sequence, in tokens, that the model is meant for.
    positions : int
        Rows of the table of learned position embeddings; 0 for none.
    first_position : int
        Its row for the first token.
    activation : str
        Activation of the MLP, one of `numbacalib.ops.activation.ACTIVATIONS`.
    rms_norm_eps : float
        Epsilon added to the mean square, or variance, in every norm.
    rope_theta : float
        Base of the rotary frequencies.
    rope_scaling : Mapping
        Parameters of the rotary scaling, with ``rope_type``; ``{"rope_type": "default"}`` for none.
    rotary_dim : int
        Number of a head's dimensions that are rotated.
    local_rope : (float, Mapping, int), optional
        Base, scaling and `rotary_dim` of the layers with windows, if these have their own.
    query_heads : tuple of int
        Query heads of each layer, if they differ; empty for `num_heads` everywhere.
    global_heads : (int, int), optional
        ``num_kv_heads`` and ``head_dim`` of the layers without windows, if these have their own.
    shared_values : tuple of bool
        Layers whose values are their keys before norm and rotation; empty for none.
    key_sources : tuple of (int or None)
        For each layer, the earlier layer whose keys and values it attends to, or None for its own; empty
        for None everywhere.
    mlp_sizes : tuple of int
        Widths of the layers' MLPs, if they differ; empty for `intermediate_size` everywhere.
    layer_input_size : int
        Length of the per-layer embeddings that each block adds through a gate
        (`numbacalib.models.layer_inputs`); 0 for none.
    rotary_layers : tuple of bool
        Layers with a rotary embedding; empty for all.
    tie_word_embeddings : bool
        Whether the output head is the embedding table.
    attention_bias, output_bias, mlp_bias, head_bias : bool
        Biases of q/k/v, of the attention's output projection, of the MLP's projections and of the head.
    qk_norm : bool
        Whether queries and keys are normalized.
    sliding_windows : tuple of (int or None)
        For each layer, the number of positions a token attends to, itself included; None for all.
    selected : int
        Largest number of positions a token attends to in sparse attention, whose indexer is not run
        (`Architecture.selector`): longer sequences are refused; 0 for dense attention.
    attention_scale : float, optional
        Factor of attention scores; ``head_dim ** -0.5`` by default.
    attention_cap, logit_cap : float
        Soft caps of scores and of logits: see `numbacalib.ops.attention`; 0 for none.
    embedding_scale, residual_scale, logit_scale : float
        Factors of embeddings, of the outputs of attention and MLP, and of logits.
    halves : tuple of str
        For each layer, its sublayers: "attention" (or its replacement), "mlp" or "both"; empty for "both"
        everywhere.
    chunks : tuple of (int or None)
        For each layer, the length of the chunks of positions within which tokens attend to each other;
        None for the whole sequence. Empty for None everywhere.
    query_growth, still_growth : Growth, optional
        Position-dependent scale of rotated queries, and of those in layers without rotary embedding.
    latent : Latent, optional
        Latent attention.
    gate_clamp : (float, float), optional
        Slope and limit of a clamped gate instead of `activation`: see
        `numbacalib.ops.activation.activate_clamped`.
    mixture : Mixture, optional
        Experts.
    delta : DeltaNet, optional
    convolution : ShortConvolution, optional
    state_space : StateSpace, optional
        Replacements of attention in some layers.
    mtp_layers : int
        Multi-token prediction (MTP) blocks after the last one, which are not run.
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
    variant: str = ""
    positions: int = 0
    first_position: int = 0
    activation: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    rotary_dim: int = 0
    local_rope: tuple[float, Mapping[str, Any], int] | None = None
    query_heads: tuple[int, ...] = ()
    global_heads: tuple[int, int] | None = None
    shared_values: tuple[bool, ...] = ()
    key_sources: tuple[int | None, ...] = ()
    mlp_sizes: tuple[int, ...] = ()
    layer_input_size: int = 0
    rotary_layers: tuple[bool, ...] = ()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    selected: int = 0
    attention_scale: float | None = None
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    halves: tuple[str, ...] = ()
    chunks: tuple[int | None, ...] = ()
    query_growth: Growth | None = None
    still_growth: Growth | None = None
    latent: Latent | None = None
    gate_clamp: tuple[float, float] | None = None
    mixture: Mixture | None = None
    delta: DeltaNet | None = None
    convolution: ShortConvolution | None = None
    state_space: StateSpace | None = None
    mtp_layers: int = 0

    @property
    def architecture(self) -> Architecture:
        """The description of the architecture, or of its variant."""
        described = ARCHITECTURES[self.model_type]
        return described.variants.get(self.variant, described)

    @cached_property
    def rope(self) -> Rope:
        """The rotary embedding; that of layers without windows if there are two."""
        length = self.max_position_embeddings
        return Rope(self.rope_theta, self.rope_scaling, self.rotary_dim, length, self.query_growth)

    def queries_of(self, index: int) -> int:
        """Number of query heads of a layer."""
        return self.query_heads[index] if self.query_heads else self.num_heads

    def heads_of(self, index: int) -> tuple[int, int]:
        """Number of key-value heads of a layer, and the length of a head."""
        if self.global_heads is not None and self.sliding_windows[index] is None:
            return self.global_heads
        return self.num_kv_heads, self.head_dim

    def key_source(self, index: int) -> int | None:
        """The earlier layer whose keys and values a layer attends to, or None for its own."""
        return self.key_sources[index] if self.key_sources else None

    @cached_property
    def lenders(self) -> tuple[int, ...]:
        """Layers whose keys and values later layers attend to."""
        return tuple(sorted({source for source in self.key_sources if source is not None}))

    def has(self, index: int, half: str) -> bool:
        """Return whether a layer has a half, "attention" or "mlp"."""
        return not self.halves or self.halves[index] in (half, "both")

    def mlp_size(self, index: int) -> int:
        """Width of a layer's MLP."""
        return self.mlp_sizes[index] if self.mlp_sizes else self.intermediate_size

    def mixture_of(self, index: int) -> Mixture | None:
        """The mixture of experts of a layer, or None."""
        return self.mixture if self.mixture and self.mixture.layers[index] else None

    def delta_of(self, index: int) -> DeltaNet | None:
        """The gated delta net of a layer, or None."""
        return self.delta if self.delta and self.delta.layers[index] else None

    def convolution_of(self, index: int) -> ShortConvolution | None:
        """The short convolution of a layer, or None."""
        found = self.convolution
        return found if found and found.layers[index] else None

    def state_space_of(self, index: int) -> StateSpace | None:
        """The Mamba 2 layer of a block, or None."""
        found = self.state_space
        return found if found and found.layers[index] else None

    def attends(self, index: int) -> bool:
        """Return whether a layer has attention and no replacement of it."""
        others = self.delta_of(index), self.convolution_of(index), self.state_space_of(index)
        return not any(others)

    def turns(self, index: int) -> bool:
        """Return whether queries and keys of a layer are rotated."""
        return not self.rotary_layers or self.rotary_layers[index]

    def rope_of(self, index: int) -> Rope | None:
        """Rotary embedding of a layer, or only the growth of its queries; None if it has neither."""
        if not self.turns(index):
            if self.still_growth is None:
                return None
            return self.rope._replace(scaling={"rope_type": "none"}, growth=self.still_growth)
        if self.local_rope is None or self.sliding_windows[index] is None:
            if self.global_heads is not None:
                return self.rope._replace(dim=self.global_heads[1])
            return self.rope
        theta, scaling, dim = self.local_rope
        return self.rope._replace(theta=theta, scaling=scaling, dim=dim)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a ``config.json`` dictionary, of transformers 4 or 5, as transformers 5 does.

        Every key is checked, or known to have no effect, or unset (null, false, empty); any other is
        refused, since it may change what the model computes.

        Raises
        ------
        ValueError
            One line that names the key, for an architecture or option that the forward pass does
            not support, a missing key, a wrong type, a value out of range, or inconsistent sizes.
        """
        decoder = decoder_config(config)
        fields = Fields(decoder)
        kinds = (*ARCHITECTURES, *WRAPPERS) if decoder is config else tuple(ARCHITECTURES)
        architecture = ARCHITECTURES[fields.choice("model_type", kinds)]
        if architecture.prepared is not None:
            fields = Fields(architecture.prepared(decoder))
        fields = fields.renamed(architecture.synonyms)
        fields.text("model_type")
        for key in QUANTIZATION:  # describes stored weights: the readers of formats check it
            fields.object(key, None)
        for key, values in architecture.fixed.items():
            fields.choice(key, values, None)
        options = read_shape(fields, architecture) | read_biases(fields, architecture)
        options["mtp_layers"] = fields.integer("num_nextn_predict_layers", 0, 1000, None) or 0
        result = cls(**(options | architecture.read(fields, options)))
        silent = {*_HARMLESS.split(), *architecture.harmless}
        harmless = {key for key in fields if key in silent or key.startswith("_")}
        fields.refuse_unread(harmless, f" in a {architecture.model_type}")
        return result
