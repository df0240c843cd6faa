"""Forward pass of the Llama family in NumPy, float32, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbacalib.models.attention import causal_attention
from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.config import ModelConfig
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.runtime.blas_tiles import multiply
from numbacalib.runtime.finite import not_finite, require_finite

__all__ = ["EMBEDDINGS", "Decoder", "DecoderBlock"]

Array = NDArray[np.float32]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
EMBEDDINGS = "model.embed_tokens.weight"
"""Name of the embedding table."""
# Rows of an elementwise step at a time, so that its operands stay in the cache.
_ROWS = 256
# Tokens that go through a block at a time in `Decoder.forward`, which bounds what it holds.
_TOKENS = 4096
# Head rows (vocabulary entries) at a time: neither the logits nor the head are ever whole.
_VOCABULARY = 8192


class DecoderBlock:
    """One decoder block: attention and MLP, each normalized before and added to the residual.

    The forward pass is cut where a linear layer's input appears, so that a quantizer sees it and
    replaces ``linears[name]`` before the next stage runs. All activations are float32, ``[T, ...]``
    for one sequence or ``[S, T, ...]`` for several of equal length, at positions ``0 .. T - 1``.

    Attributes
    ----------
    name : str
        What its tensors' names begin with, such as ``"model.layers.0"``.
    linears : dict of str to float32 ``[M, K]``
        Weights of the seven linear layers by short name, such as ``"mlp.down_proj"``; assign to
        replace one.
    stages : tuple of tuple of str
        The linear layers in the order they run, grouped by the input they share.
    """

    stages = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        rope: RotaryEmbedding,
        linears: dict[str, Array],
        vectors: dict[str, Array],
    ) -> None:
        self.name = _full_name(index)
        self.linears = linears
        self._vectors = vectors
        self._config = config
        self._rope = rope
        self._window = config.sliding_windows[index]

    def producer(self, stage: tuple[str, ...]) -> str | None:
        """Name what a stage's inputs are proportional to, channel by channel; None if nothing is.

        With fewer key-value heads than heads, several of o_proj's inputs come from one output of v_proj.
        """
        names = ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")
        name = names[self.stages.index(stage)]
        grouped = self._config.num_heads != self._config.num_kv_heads
        return None if name == "self_attn.v_proj" and grouped else name

    def fold(
        self, stage: tuple[str, ...], scales: Array, dtype: np.dtype
    ) -> tuple[Array, dict[str, NDArray[Any]]]:
        """Multiply the input channels of a stage's weights, and divide what produces them.

        The block computes what it did, up to the rounding of sums and of biases: a norm's weight is
        rounded to how it is stored, and the layers after it are scaled by what that leaves.

        Parameters
        ----------
        stage : tuple of str
            One of `stages` that has a `producer`.
        scales : float32 [K], positive
        dtype : dtype
            What norms and biases are stored in.

        Returns
        -------
        scales : float32 [K]
            By what the channels were scaled exactly.
        vectors : dict of str to array
            Norms and biases that changed, by short name with ``.weight`` or ``.bias``.
        """
        producer = self.producer(stage)
        vectors = {
            name: (vector / scales).astype(dtype)
            for name, vector in self._vectors.items()
            if name.rpartition(".")[0] == producer
        }
        if producer in self.linears:
            self.linears[producer] = self.linears[producer] / scales[:, None]
        else:
            before, after = self._vectors[f"{producer}.weight"], vectors[f"{producer}.weight"]
            kept = after.astype(np.float32)
            scales = np.divide(before, kept, out=np.ones_like(before), where=kept != 0)
        for name, vector in vectors.items():
            self._vectors[name] = vector.astype(np.float32)
        for name in stage:
            self.linears[name] = self.linears[name] * scales
        return scales, vectors

    def attention_input(self, hidden: Array) -> Array:
        """Normalized ``hidden`` ``[..., T, hidden_size]``: the input of q, k and v."""
        return self._norm("input_layernorm", hidden)

    def attention(self, x: Array) -> Array:
        """Attend: ``[..., T, hidden_size]`` to o_proj's ``[..., T, num_heads * head_dim]``."""
        config = self._config
        length = x.shape[-2]
        queries = self._project("self_attn.q_proj", x).reshape(
            -1, length, config.num_heads, config.head_dim
        )
        keys, values = (
            self._project(name, x).reshape(-1, length, config.num_kv_heads, config.head_dim)
            for name in ("self_attn.k_proj", "self_attn.v_proj")
        )
        if config.qk_norm:
            queries = self._norm("self_attn.q_norm", queries)
            keys = self._norm("self_attn.k_norm", keys)
        for sequence in range(len(queries)):
            self._rope.rotate(queries[sequence])
            self._rope.rotate(keys[sequence])
            # In place: no tile reads queries that an earlier one has replaced.
            queries[sequence] = causal_attention(
                queries[sequence], keys[sequence], values[sequence], self._window
            )
        return queries.reshape(*x.shape[:-1], -1)

    def attention_output(self, hidden: Array, context: Array) -> Array:
        """Project ``context`` and add the residual: ``[..., T, hidden_size]``."""
        result = self._project("self_attn.o_proj", context)
        result += hidden
        return result

    def mlp_input(self, hidden: Array) -> Array:
        """Normalized ``hidden`` ``[..., T, hidden_size]``: the input of gate and up."""
        return self._norm("post_attention_layernorm", hidden)

    def mlp(self, x: Array) -> Array:
        """``silu(gate) * up``, ``[..., T, intermediate_size]``: the input of down_proj."""
        gate, up = self._project("mlp.gate_proj", x), self._project("mlp.up_proj", x)
        _silu_multiply(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]))
        return gate

    def mlp_output(self, hidden: Array, activation: Array) -> Array:
        """Project ``activation`` and add the residual: ``[..., T, hidden_size]``."""
        result = self._project("mlp.down_proj", activation)
        result += hidden
        return result

    def forward(self, hidden: Array) -> Array:
        """All stages: ``[..., T, hidden_size]`` to the same shape; ``hidden`` is left as it is."""
        hidden = self.attention_output(hidden, self.attention(self.attention_input(hidden)))
        return self.mlp_output(hidden, self.mlp(self.mlp_input(hidden)))

    def _project(self, name: str, x: Array) -> Array:
        """``x W^T + b`` as one product over all tokens of all sequences."""
        weight = np.ascontiguousarray(self.linears[name])
        rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
        result = np.empty((len(rows), len(weight)), np.float32)
        multiply(rows, weight, result)
        bias = self._vectors.get(f"{name}.bias")
        if bias is not None:
            result += bias
        return result.reshape(*x.shape[:-1], weight.shape[0])

    def _norm(self, name: str, x: Array) -> Array:
        return _rms_norm(x, self._vectors[f"{name}.weight"], self._config.rms_norm_eps)


class Decoder:
    """A Llama-family language model that reads its weights block by block.

    Parameters
    ----------
    checkpoint : Checkpoint
    weight : callable, optional
        Full tensor name to float weight ``[M, K]``, for the blocks' linear layers; where the
        checkpoint stores them in another form (packed codes), this is who unpacks them. By default
        they are read as stored. Embeddings, norms, biases and head always are.

    Raises
    ------
    ValueError
        If a tensor is missing, or has another shape than the configuration says or no floating
        type, or if the rotary scaling is not supported. All before any weight is read.
    """

    def __init__(
        self, checkpoint: Checkpoint, weight: Callable[[str], NDArray[Any]] | None = None
    ) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._weight = weight or checkpoint.tensor
        self._rope = RotaryEmbedding(self.config)
        self._head = EMBEDDINGS if self.config.tie_word_embeddings else "lm_head.weight"
        table = (self.config.vocab_size, self.config.hidden_size)
        shapes = {EMBEDDINGS: table, "model.norm.weight": table[1:], self._head: table}
        for index in range(self.config.num_layers):
            linears = _linear_shapes(self.config) if weight is None else {}
            for name, shape in (linears | _vector_shapes(self.config)).items():
                shapes[_full_name(index, name)] = shape
        self._check(shapes)

    def embed(self, tokens: ArrayLike) -> Array:
        """Embeddings float32 ``[..., T, hidden_size]`` of integer ``tokens`` ``[..., T]``.

        Raises
        ------
        ValueError
            For a token outside the vocabulary, or one whose embedding is not finite.
        """
        tokens = self._tokens(tokens)
        table = self._checkpoint.tensor(EMBEDDINGS)
        hidden = table[tokens].astype(np.float32)
        finite = np.isfinite(hidden).all(axis=-1)
        if not finite.all():
            row = int(tokens[~finite][0])
            column = int(np.argmin(np.isfinite(table[row].astype(np.float32))))
            place = row * table.shape[1] + column
            name = f"{self._checkpoint.path}: {EMBEDDINGS}"
            raise not_finite(name, table[row, column], place, table.shape)
        return hidden

    def block(self, index: int) -> DecoderBlock:
        """Read block ``index``, ``0 .. num_layers - 1``; nothing of it is kept here.

        Raises
        ------
        ValueError
            If a value is not finite: names the file, the tensor and the place.
        """
        linears = {}
        for name, shape in _linear_shapes(self.config).items():
            full_name = _full_name(index, name)
            weight = np.array(self._weight(full_name), dtype=np.float32)
            if weight.shape != shape:
                raise ValueError(f"{full_name}: expected shape {shape}, got {weight.shape}")
            require_finite(f"{self._checkpoint.path}: {full_name}", weight)
            linears[name.removesuffix(".weight")] = weight
        vectors = {
            name: self._vector(_full_name(index, name)) for name in _vector_shapes(self.config)
        }
        return DecoderBlock(self.config, index, self._rope, linears, vectors)

    def block_tensors(self, index: int) -> list[str]:
        """Names of the tensors that `block` reads."""
        shapes = _linear_shapes(self.config) | _vector_shapes(self.config)
        return [_full_name(index, name) for name in shapes]

    def forward(self, tokens: ArrayLike) -> Array:
        """Hidden states after the last block, float32 ``[..., T, hidden_size]``."""
        hidden = self.embed(tokens)
        sequences = hidden.reshape(-1, *hidden.shape[-2:])
        step = max(1, _TOKENS // hidden.shape[-2])
        for index in range(self.config.num_layers):
            block = self.block(index)
            for start in range(0, len(sequences), step):
                part = sequences[start : start + step]
                part[...] = block.forward(part)
        return hidden

    def logits(self, hidden: Array) -> Array:
        """Final norm and output head: ``[..., hidden_size]`` to float32 ``[..., vocab_size]``.

        The result is large; `token_losses` never holds more than a tile of it.
        """
        x = self._final_norm(hidden)
        head = self._checkpoint.tensor(self._head).astype(np.float32)
        return (x.reshape(-1, x.shape[-1]) @ head.T).reshape(*x.shape[:-1], -1)

    def token_losses(self, hidden: Array, tokens: ArrayLike) -> Array:
        """Negative log likelihood, in nats, of each token after the first of its sequence.

        Parameters
        ----------
        hidden : float32 ``[..., T, hidden_size]``
            States after the last block, as `forward` returns them.
        tokens : integer ``[..., T]``
            The tokens they were computed from.

        Returns
        -------
        float32 ``[..., T - 1]``

        Raises
        ------
        ValueError
            For a token outside the vocabulary, or ``T`` below 2.
        """
        targets = self._tokens(tokens)[..., 1:]
        if targets.size == 0:
            raise ValueError("tokens: expected sequences of at least 2, got 1")
        x = self._final_norm(hidden[..., :-1, :]).reshape(-1, hidden.shape[-1])
        losses = _cross_entropy(x, self._checkpoint.tensor(self._head), targets.ravel())
        return losses.reshape(targets.shape)

    def loss(self, tokens: ArrayLike) -> float:
        """Mean of `token_losses` over ``tokens`` ``[..., T]``; perplexity is its exponential."""
        return float(self.token_losses(self.forward(tokens), tokens).mean(dtype=np.float64))

    def _final_norm(self, hidden: Array) -> Array:
        return _rms_norm(hidden, self._vector("model.norm.weight"), self.config.rms_norm_eps)

    def _vector(self, name: str) -> Array:
        """A norm or a bias, all of it finite."""
        vector = self._checkpoint.tensor(name).astype(np.float32)
        require_finite(f"{self._checkpoint.path}: {name}", vector)
        return vector

    def _tokens(self, tokens: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(tokens)
        if array.ndim < 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: expected integers [..., T], got {array.dtype} of shape {array.shape}"
            )
        if array.min() < 0 or array.max() >= self.config.vocab_size:
            raise ValueError(
                f"tokens: expected 0 to {self.config.vocab_size - 1}, "
                f"got {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        path, names = self._checkpoint.path, set(self._checkpoint.names())
        missing = [name for name in shapes if name not in names]
        if missing:
            raise ValueError(f"{path}: {len(missing)} tensors are missing, first {missing[0]}")
        for name, shape in shapes.items():
            info = self._checkpoint.info(name)
            if info.shape != shape:
                raise ValueError(f"{path}: {name}: expected shape {shape}, got {info.shape}")
            if info.dtype.name not in _FLOATS:
                raise ValueError(
                    f"{path}: {name}: expected {', '.join(_FLOATS)}, got {info.dtype.name}"
                )


def _full_name(index: int, *name: str) -> str:
    return ".".join(["model.layers", str(index), *name])


def _linear_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def _vector_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Norms, and the biases that this architecture has."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (config.hidden_size,),
        "post_attention_layernorm.weight": (config.hidden_size,),
    }
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    for name, shape in _linear_shapes(config).items():
        biased = config.attention_bias
        if name.startswith("mlp."):
            biased = config.mlp_bias
        elif name.startswith("self_attn.o_proj"):
            biased = config.output_bias
        if biased:
            shapes[name.replace(".weight", ".bias")] = shape[:1]
    return shapes


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang, Sennrich 2019)."""
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    result: Array = x / np.sqrt(mean_square + np.float32(eps))
    result *= weight
    return result


def _silu_multiply(gate: Array, up: Array) -> None:
    """Replace ``gate`` ``[N, M]`` by ``gate / (1 + exp(-gate)) * up`` (Shazeer 2020, SwiGLU)."""
    buffer = np.empty_like(gate[:_ROWS])
    with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right limit, zero
        for start in range(0, len(gate), _ROWS):
            rows = gate[start : start + _ROWS]
            denominator = np.negative(rows, out=buffer[: len(rows)])
            np.exp(denominator, out=denominator)
            denominator += 1
            rows /= denominator
            rows *= up[start : start + _ROWS]


def _cross_entropy(x: Array, head: NDArray[Any], targets: NDArray[np.int64]) -> Array:
    """``logsumexp(x head^T) - (x head^T)[target]`` for each row, in tiles of the vocabulary.

    The running maximum and sum are those of online softmax (Milakov, Gimelshein 2018).
    """
    maxima = np.full(len(x), -np.inf, dtype=np.float32)
    sums = np.zeros(len(x), dtype=np.float32)
    picked = np.empty(len(x), dtype=np.float32)
    for first in range(0, len(head), _VOCABULARY):
        weight = head[first : first + _VOCABULARY].astype(np.float32)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            logits = x[rows] @ weight.T
            here = np.flatnonzero((targets[rows] >= first) & (targets[rows] < first + len(weight)))
            picked[start + here] = logits[here, targets[start + here] - first]
            maximum = np.maximum(maxima[rows], logits.max(axis=1))
            logits -= maximum[:, None]
            sums[rows] *= np.exp(maxima[rows] - maximum)
            sums[rows] += np.exp(logits, out=logits).sum(axis=1)
            maxima[rows] = maximum
    return np.asarray(maxima + np.log(sums) - picked)
