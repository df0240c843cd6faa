"""Description of an architecture: names of its tensors, options of its forward pass, its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numbacalib.models.fields import Fields
from numbacalib.models.rope_parameters import NO_WORDS, Words
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
"""Functions of `numbacalib.ops.activation` by their names in configurations; synonyms are one function."""

SEPARATE: dict[str, str] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""The linear layers of a block by role. Roles of one name are one layer, whose rows follow each other in
the order of the roles. ``query_key_value`` in the place of three roles is one layer that has, for each head
of keys, the heads of queries that attend to it, then that head, then the values'. ``query_gate``
in the place of ``query`` is one that has, for each head, a gate after it, by whose sigmoid what the head
attends to is multiplied; ``attention_gate`` is a layer of its own for that. Without a gate the MLP is
``down(activation(up(x)))``."""

LATENT: dict[str, str] = {
    "query_latent": "self_attn.q_a_proj",
    "query": "self_attn.q_b_proj",
    "direct_query": "self_attn.q_proj",
    "latent": "self_attn.kv_a_proj_with_mqa",
    "key_value": "self_attn.kv_b_proj",
    **{role: SEPARATE[role] for role in ("output", "gate", "up", "down")},
}
"""The same with latent attention (`numbacalib.models.latent`): what makes the vectors that queries, and
keys and values, come from, and what they come by. ``latent`` has the keys' part that turns after its
vector; ``key_value`` has, for each head, the keys' other part before the values. ``direct_query`` is the
layer of queries in models without a vector for these."""

ATTENTION_BIASES: dict[str, str | bool] = {
    "attention": "attention_bias",
    "output": "attention_bias",
}
"""Biases of all four projections, where the configuration says so."""

PRE_NORMS: dict[str, str] = {
    "attention": "input_layernorm",
    "mlp": "post_attention_layernorm",
    "query": "self_attn.q_norm",
    "key": "self_attn.k_norm",
}
"""The norms of a block by role: before attention and MLP, after them (``attention_output`` and
``mlp_output``, before the sum with the residual stream), of queries and keys, and of latents
(``query_latent`` and ``latent``). A role that is not there has no norm; without one of its own, the MLP of
a parallel block shares the attention's. Experts read what the MLP beside them does, unless they have a norm
of their own (``experts``); their sum and that MLP's outputs may have one before they are added
(``experts_output`` and ``shared_output``)."""


@dataclass(frozen=True, kw_only=True)
class ExpertNames:
    """Names of the parts of a mixture of experts in a block, beside `Architecture.linears`.

    Attributes
    ----------
    router : str
        The layer whose outputs choose a token's experts.
    correction : str
        The tensor that is added to its weights in the choice alone; "" for none.
    correction_is_row : bool
        Whether that is ``[1, E]``.
    router_norm : str
        The tensor that multiplies a token's state, made to have a mean square of 1 over its length, where
        that is what the router reads; "" where it reads what experts do.
    factors : str
        The tensor of a further factor of each expert's outputs; "" for none.
    latent, latent_output : str
        Layers that make what experts read of a token's state, and a state's change of the sum of their
        outputs (`Mixture.latent_size`): small, and never quantized; "" for none.
    each : str
        What the layers' names of one expert begin with, before its number.
    gate, up, down : str
        How they end; "" for no gate.
    shared : str
        What the names of the MLP begin with that all tokens go through, where there is one; "" where they
        are those of blocks without experts.
    shared_gate : str
        The layer whose sigmoid its output is multiplied by; "" for none.
    fused_gate_up, fused_down : str
        What files call the tensors that hold all experts, if not `each` with ``gate_up_proj`` and
        ``down_proj``: ``[E, 2 size, hidden_size]``, gates before ups, and ``[E, hidden_size, size]``.
    transposed : bool
        Whether those are ``[E, hidden_size, 2 size]`` and ``[E, size, hidden_size]``.
    either_way : bool
        Whether files have those one way or the other, as their shapes tell.
    interleaved : bool
        Whether each gate in them is followed by its up.
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
        """Ends of the names of tensors of one row, which are vectors elsewhere."""
        gate = (f".{self.shared_gate}.weight",) if self.shared_gate else ()
        return (*gate, f".{self.correction}") if self.correction_is_row else gate


@dataclass(frozen=True, kw_only=True)
class DeltaNames:
    """Names of the parts of a gated delta net in a block, in the place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``query``, ``key``, ``value`` and ``open`` (by whose SiLU outputs are
        multiplied), or ``query_key_value_open``, which has, for each head of keys, its queries, then it,
        then the values and the others that belong to it; and ``output``.
    rates, decays : str
        The layers of a number for each head of values, `numbacalib.ops.delta_rule`. If they are one, it
        has, for each head of keys, the rates of its values, then their decays.
    convolution, norm : str
        Of queries, keys and values; and of outputs, whose weight multiplies as it is.
    slopes, biases : str
        Tensors, of decays.
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
    """Names of the parts of a short convolution in a block, in the place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``thirds``, whose rows are those of a gate before, of one after and of
        what goes through both, and ``output``.
    taps : str
    """

    linears: Mapping[str, str]
    taps: str


@dataclass(frozen=True, kw_only=True)
class StateSpaceNames:
    """Names of the parts of a layer of Mamba 2 in a block, in the place of attention.

    Attributes
    ----------
    linears : Mapping
        Its linear layers by role: ``mixed``, whose rows are those of gates, values, keys, queries and of a
        score of each head, and ``output``.
    convolution, norm : str
        Of values, keys and queries; and of outputs, whose weight multiplies as it is.
    slopes, biases, shares : str
        Tensors: of decays, and of what of a value is added to what its head reads.
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
        Its names in a ``config.json``: ``model_type``, and the class under ``architectures``, which is
        empty where it comes in a wrapper alone.
    title : str
        The models that people know it by.
    variants : Mapping
        Descriptions that `ModelConfig.variant` chooses instead, where files of one `model_type` differ by
        more than options.
    renamed : Mapping
        Beginnings of its tensors' names outside of the blocks, and what ours are (`layer_tensors`), where
        they differ: ``{"model.final_layernorm.": "model.norm."}``.
    aliases : Mapping
        Layers of blocks that stay as they are and that transformers calls otherwise than its files.
    linears, norms : Mapping
        As `SEPARATE` and `PRE_NORMS`; names in a block.
    transposed : bool
        Whether files hold linear layers of blocks as ``[K, M]``.
    buffers : sequence of str
        Ends of the names of tables that files of older versions have, and nothing reads any more.
    experts : ExpertNames, optional
        In the blocks that have a mixture of them (`numbacalib.models.config.Mixture`).
    delta : DeltaNames, optional
        In the blocks that have a gated delta net (`numbacalib.models.delta_net`).
    convolution : ConvolutionNames, optional
        In the blocks that have a short convolution (`numbacalib.models.short_convolution`).
    state_space : StateSpaceNames, optional
        In the blocks that have a layer of Mamba 2 (`numbacalib.models.state_space`).
    norm : str
        "rms" or "layer".
    norm_offset : float
        What is added to the weight of every norm: 1 where files hold weights minus 1.
    norm_bias : bool
        Whether norms have biases (LayerNorm).
    qk_norm : str
        Over what queries and keys are normalized, where they are: "head" (each head, with one weight),
        "heads" (each head, with its own), "all" (all heads together) or "unit" (each head, without a
        weight, in layers where it turns).
    value_norm : bool
        Whether values are normalized head by head, without a weight.
    norm_after_rotary : bool
        Whether queries and keys are normalized after they are turned.
    interleaved : bool
        True where rotary embedding pairs neighbours: see `numbacalib.ops.rotary.rotate`.
    head_gate, head_gate_activation : str
        The layer of a number for each head, by whose activation what the head attends to is multiplied; ""
        for none. It is small, and never quantized.
    sinks : str
        The vector of a score for each head that has no value (`numbacalib.ops.attention`); "" for none.
    block_scale : str
        The tensor of the number that a block's results are multiplied by; "" for none.
    selector : str
        What names in a block begin with of what chooses the positions that attention sees, among more than
        `ModelConfig.selected`: it is copied as it is; "" for none.
    parallel : bool
        Whether the MLP's input is the block's, not what attention has added to.
    local_rope_key : str
        What files of transformers 4 call the rotary base of layers with windows, where these have one of
        their own.
    rope_words : Words
        What its files say of the rotary embedding and others' do not.
    keys : Mapping
        The configuration's own names of what `ModelConfig.from_hf` reads under llama's.
    synonyms : Mapping
        Further names of keys, and those they stand for where a file does not have these.
    prepared : callable, optional
        From a file's keys to those that are read, where they say more than another name.
    defaults : Mapping
        What transformers takes where a file leaves a key out, by llama's name, where it is not llama's;
        ``intermediate_factor`` times ``hidden_size`` is ``intermediate_size``.
    biases : Mapping
        The key that says whether the linear layers ``attention`` (query, key and value), ``output`` and
        ``mlp`` have biases, or keys one of which says so, or whether they have.
    harmless : sequence of str
        Further keys that do not change what it computes.
    fixed : Mapping
        Keys of published files that transformers does not read, and the values with which they say what it
        computes; others are refused.
    read : callable
        The options that are this architecture's own, from the file's keys and what was read before: the
        windows, at least.
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
    rope_words: Words = NO_WORDS
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
        """True where parts of a head turn by an image's three positions, which are one for text."""
        return "mrope_section" in self.rope_words.others

    def key(self, name: str) -> str:
        """Return the configuration's key for what llama's calls `name`."""
        return self.keys.get(name, name)
