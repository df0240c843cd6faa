"""Description of an architecture: names of its tensors, options of its forward pass, its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import STANDARD_NAMES, RopeNames
from numbacalib.models.windows import no_windows

__all__ = ["ACTIVATIONS", "Architecture", "ConvolutionNames", "DeltaNames"]
__all__ += ["ExpertNames", "StateSpaceNames"]

Options = dict[str, Any]
"""Attributes of a `ModelConfig`, by name."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
}
"""Functions of `numbacalib.ops.activation` by their names in configurations."""

SEPARATE: dict[str, str] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Linear layers of a block by role. Roles with the same name are one layer, with the roles' rows in order.
``query_key_value`` replaces three roles by a layer that has, for each key head, the query heads that attend
to it, then the key head, then the value head. ``query_gate`` replaces ``query`` by a layer that has, for
each head, its query and then an output gate: the sigmoid of the gate multiplies the head's output;
``attention_gate`` is a separate layer of such gates. Without ``gate`` the MLP is
``down(activation(up(x)))``."""

LATENT: dict[str, str] = {
    "query_latent": "self_attn.q_a_proj",
    "query": "self_attn.q_b_proj",
    "direct_query": "self_attn.q_proj",
    "latent": "self_attn.kv_a_proj_with_mqa",
    "key_value": "self_attn.kv_b_proj",
    **{role: SEPARATE[role] for role in ("output", "gate", "up", "down")},
}
"""The same with latent attention (`numbacalib.models.latent`): ``query_latent`` and ``latent`` project
down to the latent vectors, ``query`` and ``key_value`` up from them. ``latent`` has the rows of the latent
vector, then those of the keys' rotated part; ``key_value`` has, for each head, the rest of its keys, then
its values. ``direct_query`` is the query layer of models without a latent vector of queries."""

ATTENTION_BIASES: dict[str, str | bool] = {
    "attention": "attention_bias",
    "output": "attention_bias",
}
"""Biases of all four projections, by one key of the configuration."""

PRE_NORMS: dict[str, str] = {
    "attention": "input_layernorm",
    "mlp": "post_attention_layernorm",
    "query": "self_attn.q_norm",
    "key": "self_attn.k_norm",
}
"""Norms of a block by role: before attention and MLP, after them (``attention_output`` and
``mlp_output``, before the sum with the residual stream), of queries and keys, and of latents
(``query_latent`` and ``latent``). An absent role has no norm, except that the MLP of a parallel block then
shares the attention's. Experts share the input of the MLP beside them, unless they have their own norm
(``experts``); their sum and that MLP's output may each be normalized before they are added
(``experts_output`` and ``shared_output``)."""


@dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """Names of the parts of a mixture of experts in a block, beside `Architecture.linears`.

    Attributes
    ----------
    router : str
        The router's layer, whose outputs score the experts.
    correction : str
        The bias added to the router's weights for the choice only; "" for none.
    correction_is_row : bool
        Whether that is ``[1, E]``.
    router_norm : str
        The weight of the router's own RMS norm of a token's state, scaled by ``hidden_size ** -0.5``; ""
        if the router reads the input of the experts.
    factors : str
        The tensor of an additional factor of each expert's outputs; "" for none.
    latent, latent_output : str
        Layers that project a token's state down to the experts' inputs, and the sum of their outputs back
        up (`Mixture.latent_size`): small, and never quantized; "" for none.
    each : str
        Prefix of the names of an expert's layers, before its number.
    gate, up, down : str
        Suffixes of these names; "" for no gate.
    shared : str
        Prefix of the names of the shared MLP, which all tokens go through; "" if they are the names of the
        MLP in blocks without experts.
    shared_gate : str
        The layer whose sigmoid multiplies the shared MLP's output; "" for none.
    fused_gate_up, fused_down : str
        Names of the tensors that hold all experts, if not `each` with ``gate_up_proj`` and
        ``down_proj``: ``[E, 2 size, hidden_size]``, gates before ups, and ``[E, hidden_size, size]``.
    transposed : bool
        Whether those are ``[E, hidden_size, 2 size]`` and ``[E, size, hidden_size]``.
    either_way : bool
        Whether files have either layout, told apart by shape.
    interleaved : bool
        Whether rows of gates and ups alternate in them.
    """

    router: str = "mlp.gate"
    correction: str = ""
    correction_is_row: bool = False
    router_norm: str = ""
    factors: str = ""
    latent: str = ""
    latent_output: str = ""
    each: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = ""
    shared_gate: str = ""
    fused_gate_up: str = ""
    fused_down: str = ""
    transposed: bool = False
    either_way: bool = False
    interleaved: bool = False

    @property
    def rows(self) -> tuple[str, ...]:
        """Suffixes of the names of one-row tensors, which are vectors in other formats."""
        gate = (f".{self.shared_gate}.weight",) if self.shared_gate else ()
        return (*gate, f".{self.correction}") if self.correction_is_row else gate


@dataclass(frozen=True, kw_only=True)
class DeltaNames:
    """Names of the parts of a gated delta net in a block, in place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``query``, ``key``, ``value`` and ``open`` (the output gate, applied as a
        SiLU), or ``query_key_value_open``, which has, for each key head, its query, its key, and the values
        and gates of its value heads; and ``output``.
    rates, decays : str
        The layers with one output for each value head: see `numbacalib.ops.delta_rule`. If both are one
        layer, it has, for each key head, the rates of its value heads, then their decays.
    convolution, norm : str
        The convolution of queries, keys and values; the norm of outputs, without `norm_offset`.
    slopes, biases : str
        Tensors of the decays.
    """

    linears: Mapping[str, str]
    rates: str
    decays: str
    convolution: str = "linear_attn.conv1d"
    norm: str = "linear_attn.norm"
    slopes: str = "linear_attn.A_log"
    biases: str = "linear_attn.dt_bias"


@dataclass(frozen=True, kw_only=True)
class ConvolutionNames:
    """Names of the parts of a short convolution in a block, in place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``thirds``, with the rows of the input gate, the output gate and the
        values, and ``output``.
    taps : str
    """

    linears: Mapping[str, str]
    taps: str


@dataclass(frozen=True, kw_only=True)
class StateSpaceNames:
    """Names of the parts of a Mamba 2 layer in a block, in place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``mixed``, with the rows of gates, values, keys, queries and one score
        for each head, and ``output``.
    convolution, norm : str
        The convolution of values, keys and queries; the norm of outputs, without `norm_offset`.
    slopes, biases, shares : str
        Tensors: two of the decays, and the factor of the skip connection from a head's values.
    """

    linears: Mapping[str, str]
    convolution: str = "mamba.conv1d"
    norm: str = "mamba.norm"
    slopes: str = "mamba.A_log"
    biases: str = "mamba.dt_bias"
    shares: str = "mamba.D"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of decoders, as transformers implements it.

    Attributes
    ----------
    model_type, causal_lm : str
        Its names in a ``config.json``: ``model_type``, and the class under ``architectures``, empty if it
        exists only inside wrappers.
    title : str
        The models that use it.
    variants : Mapping
        Descriptions by `ModelConfig.variant`, if files of one `model_type` differ by more than options.
    renamed : Mapping
        Prefixes of its tensors' names outside of the blocks, and our prefixes (`layer_tensors`), if they
        differ: ``{"model.final_layernorm.": "model.norm."}``.
    aliases : Mapping
        Unquantized layers of blocks by their names in files, and transformers' names of their modules.
    linears, norms : Mapping
        As `SEPARATE` and `PRE_NORMS`; names in a block.
    transposed : bool
        Whether files store linear layers of blocks as ``[K, M]``.
    buffers : sequence of str
        Suffixes of the names of unused buffers in files of older versions.
    experts : ExpertNames, optional
        Names in the blocks with a mixture of experts (`numbacalib.models.mixture`).
    delta : DeltaNames, optional
        Names in the blocks with a gated delta net (`numbacalib.models.delta_net`).
    convolution : ConvolutionNames, optional
        Names in the blocks with a short convolution (`numbacalib.models.short_convolution`).
    state_space : StateSpaceNames, optional
        Names in the blocks with a Mamba 2 layer (`numbacalib.models.state_space`).
    norm : str
        "rms" or "layer".
    norm_offset : float
        Number added to the weight of every norm: 1 if files store weights minus 1.
    norm_bias : bool
        Whether norms have biases (LayerNorm).
    qk_norm : str
        Form of the norm of queries and keys, if there is one: "head" (each head, with a shared weight),
        "heads" (each head, with its own weight), "all" (all heads together) or "unit" (each head, without
        a weight, in layers with rotary embedding).
    value_norm : bool
        Whether values are normalized head by head, without a weight.
    norm_after_rotary : bool
        Whether queries and keys are normalized after they are rotated.
    interleaved : bool
        True if rotary embedding pairs neighbours: see `numbacalib.ops.rotary.rotate`.
    head_gate, head_gate_activation : str
        The layer with one output for each head, whose activation multiplies the head's output; "" for
        none. It is small, and never quantized.
    sinks : str
        The vector of attention sinks, a score for each head (`numbacalib.ops.attention`); "" for none.
    block_scale : str
        The tensor of the scalar that multiplies a block's output; "" for none.
    selector : str
        Prefix, in a block, of the names of the indexer of sparse attention, which chooses positions among
        more than `ModelConfig.selected`: it is copied unchanged; "" for none.
    parallel : bool
        Whether attention and MLP both read the block's input.
    local_rope_key : str
        Name, in files of transformers 4, of the rotary base of layers with windows, if these have their
        own.
    rope_names : RopeNames
        Names in its files for the rotary embedding that other files do not have.
    keys : Mapping
        Its names of the keys that `ModelConfig.from_hf` reads, by llama's names.
    synonyms : Mapping
        Alternative names of keys, and the keys they replace if a file does not have these.
    prepared : callable, optional
        Converts a file's keys to those that are read, where renaming is not enough.
    defaults : Mapping
        transformers' defaults of absent keys, by llama's name, where they differ from llama's;
        ``intermediate_factor`` times ``hidden_size`` is ``intermediate_size``.
    biases : Mapping
        For the linear layers ``attention`` (query, key and value), ``output`` and ``mlp``: whether they
        have biases, or the key that says so, or keys any of which may.
    harmless : sequence of str
        Further keys without effect on the forward pass.
    fixed : Mapping
        Keys of published files that transformers ignores, and the values that match what it computes;
        others are refused.
    read : callable
        Returns the architecture's own options, at least the windows, from the file's keys and the options
        read before.
    """

    model_type: str
    causal_lm: str
    title: str
    variants: Mapping[str, Architecture] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    linears: Mapping[str, str] = field(default_factory=lambda: SEPARATE)
    norms: Mapping[str, str] = field(default_factory=lambda: PRE_NORMS)
    transposed: bool = False
    buffers: Sequence[str] = ()
    experts: ExpertNames | None = None
    delta: DeltaNames | None = None
    convolution: ConvolutionNames | None = None
    state_space: StateSpaceNames | None = None
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_bias: bool = False
    qk_norm: str = "head"
    value_norm: bool = False
    norm_after_rotary: bool = False
    interleaved: bool = False
    head_gate: str = ""
    head_gate_activation: str = "sigmoid"
    sinks: str = ""
    block_scale: str = ""
    selector: str = ""
    parallel: bool = False
    local_rope_key: str = ""
    rope_names: RopeNames = STANDARD_NAMES
    keys: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    prepared: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, bool | str | tuple[str, ...]] = field(default_factory=dict)
    harmless: Sequence[str] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    read: Callable[[Fields, Options], Options] = no_windows

    @property
    def sections(self) -> bool:
        """True with multimodal rotary embedding (M-RoPE), whose three positions are equal for text."""
        return "mrope_section" in self.rope_names.others

    def key(self, name: str) -> str:
        """Return the configuration's key for llama's key `name`."""
        return self.keys.get(name, name)
