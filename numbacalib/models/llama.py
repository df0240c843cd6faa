"""Forward pass of the Llama family on either device, one decoder block in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.config import ModelConfig
from numbacalib.models.layer_tensors import EMBEDDINGS, HEAD, linear_shapes, vector_shapes
from numbacalib.models.place import HOST, Place
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.ops.attention import attention
from numbacalib.ops.gated_silu import gated_silu
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import cast, from_host, put_rows, scaled, take, to_host
from numbacalib.ops.rms_norm import rms_norm
from numbacalib.ops.rotary import rotate
from numbacalib.ops.token_loss import LOWEST, add_scores, losses
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.not_finite import not_finite

__all__ = ["Decoder", "DecoderBlock"]

Array = Any
"""An array of the place that a model runs on: NumPy's, or on a CUDA device."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Vocabulary entries at a time: neither the embeddings, nor the head, nor the logits are ever whole.
_VOCABULARY = 8192


class DecoderBlock:
    """One decoder block: attention and MLP, each normalized before and added to the residual.

    The forward pass is cut where a linear layer's input appears, so that a quantizer sees it and
    replaces ``linears[name]`` before the next stage runs. Activations are ``[T, ...]`` for one sequence
    or ``[S, T, ...]`` for several of equal length, at positions ``0 .. T - 1``. The residual stream is
    float32; inputs of linear layers are of `dtype`, and sums float32.

    Attributes
    ----------
    name : str
        What its tensors' names begin with, such as ``"model.layers.0"``.
    linears : dict of str to array ``[M, K]``
        Weights of the seven linear layers by short name, such as ``"mlp.down_proj"``; assign to
        replace one.
    dtype : dtype
        In what products are computed: that in which the weights came.
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
        self.dtype = np.dtype(linears["self_attn.q_proj"].dtype)
        self._vectors = vectors
        self._config = config
        self._rope = rope
        self._window = config.sliding_windows[index]

    def copied(self) -> DecoderBlock:
        """Return the same block, whose weights stay when those of this one are replaced."""
        twin = copy.copy(self)
        twin.linears, twin._vectors = dict(self.linears), dict(self._vectors)
        return twin

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
        factors = to_host(scales)
        before = {
            name: to_host(vector)
            for name, vector in self._vectors.items()
            if name.rpartition(".")[0] == producer
        }
        vectors = {name: (vector / factors).astype(dtype) for name, vector in before.items()}
        if producer in self.linears:
            weight = self.linears[producer]
            self.linears[producer] = scaled(weight, 1.0, from_host(1 / factors, weight))
        else:
            weight, kept = before[f"{producer}.weight"], vectors[f"{producer}.weight"]
            kept = kept.astype(np.float32)
            factors = np.divide(weight, kept, out=np.ones_like(weight), where=kept != 0)
        for name, vector in vectors.items():
            self._vectors[name] = from_host(vector.astype(np.float32), scales)
        scales = from_host(factors, scales)
        for name in stage:
            self.linears[name] = scaled(self.linears[name], scales)
        return scales, vectors

    def attention_input(self, hidden: Array) -> Array:
        """Normalized ``hidden`` ``[..., T, hidden_size]``: the input of q, k and v."""
        return self._norm("input_layernorm", hidden)

    def attention(self, x: Array) -> Array:
        """Attend: ``[..., T, hidden_size]`` to o_proj's ``[..., T, num_heads * head_dim]``."""
        config = self._config
        *_, length, _ = x.shape

        def heads_of(name: str, count: int) -> Array:
            return self._project(name, x).reshape(-1, length, count, config.head_dim)

        queries = heads_of("self_attn.q_proj", config.num_heads)
        keys = heads_of("self_attn.k_proj", config.num_kv_heads)
        values = heads_of("self_attn.v_proj", config.num_kv_heads)
        if config.qk_norm:
            queries = self._norm("self_attn.q_norm", queries)
            keys = self._norm("self_attn.k_norm", keys)
        cos, sin = self._rope.tables(length)
        for heads in (queries, keys):
            rotate(heads, cos, sin)
        context = attention(queries, keys, values, self._window)
        return context.reshape(*x.shape[:-1], config.num_heads * config.head_dim)

    def attention_output(self, hidden: Array, context: Array) -> Array:
        """Project ``context``, add it to ``hidden`` ``[..., T, hidden_size]`` in place, return that."""
        return self._project("self_attn.o_proj", context, add_to=hidden)

    def mlp_input(self, hidden: Array) -> Array:
        """Normalized ``hidden`` ``[..., T, hidden_size]``: the input of gate and up."""
        return self._norm("post_attention_layernorm", hidden)

    def mlp(self, x: Array) -> Array:
        """``silu(gate) * up``, ``[..., T, intermediate_size]``: the input of down_proj."""
        return gated_silu(self._project("mlp.gate_proj", x), self._project("mlp.up_proj", x))

    def mlp_output(self, hidden: Array, activation: Array) -> Array:
        """Project ``activation``, add it to ``hidden`` in place, return that."""
        return self._project("mlp.down_proj", activation, add_to=hidden)

    def forward(self, hidden: Array) -> Array:
        """Run all stages on ``hidden`` ``[..., T, hidden_size]``, in place, and return it."""
        self.attention_output(hidden, self.attention(self.attention_input(hidden)))
        return self.mlp_output(hidden, self.mlp(self.mlp_input(hidden)))

    def _project(self, name: str, x: Array, add_to: Array | None = None) -> Array:
        """``x W^T + b`` as one product over all tokens of all sequences."""
        weight = cast(self.linears[name], self.dtype)
        return linear(x, weight, self._vectors.get(f"{name}.bias"), add_to=add_to)

    def _norm(self, name: str, x: Array) -> Array:
        eps = self._config.rms_norm_eps
        return rms_norm(x, self._vectors[f"{name}.weight"], eps, self.dtype)


class Decoder:
    """A Llama-family language model that reads its weights block by block.

    Parameters
    ----------
    checkpoint : Checkpoint
    weight : callable, optional
        Full tensor name to float weight ``[M, K]``, for the blocks' linear layers; where the
        checkpoint stores them in another form (packed codes), this is who unpacks them. By default
        they are read as stored. Embeddings, norms, biases and head always are.
    place : Place, default the host
        Where it runs.

    Raises
    ------
    ValueError
        If a tensor is missing, or has another shape than the configuration says or no floating
        type, or if the rotary scaling is not supported. All before any weight is read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weight: Callable[[str], NDArray[Any]] | None = None,
        place: Place = HOST,
    ) -> None:
        self.config = checkpoint.config
        self.place = place
        self._checkpoint = checkpoint
        self._weight = weight or checkpoint.tensor
        self._rope = RotaryEmbedding(self.config, place)
        self._head = EMBEDDINGS if self.config.tie_word_embeddings else HEAD
        table = (self.config.vocab_size, self.config.hidden_size)
        shapes = {EMBEDDINGS: table, "model.norm.weight": table[1:], self._head: table}
        for index in range(self.config.num_layers):
            linears = linear_shapes(self.config) if weight is None else {}
            for name, shape in (linears | vector_shapes(self.config)).items():
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
        flat = tokens.ravel()
        hidden = self.place.zeros((len(flat), self.config.hidden_size))
        for index, rows in enumerate(self._checkpoint.tiles(EMBEDDINGS, _VOCABULARY)):
            here = np.flatnonzero(flat // _VOCABULARY == index)
            if len(here):
                found = take(self.place.put(rows), flat[here] % _VOCABULARY, 0)
                self._require_finite_rows(found, flat[here])
                put_rows(hidden, here, cast(found, np.float32))
        return hidden.reshape(*tokens.shape, self.config.hidden_size)

    def block(self, index: int) -> DecoderBlock:
        """Read block ``index``, ``0 .. num_layers - 1``; nothing of it is kept here.

        Raises
        ------
        ValueError
            If a value is not finite: names the file, the tensor and the place.
        """
        linears = {}
        for name, shape in linear_shapes(self.config).items():
            full_name = _full_name(index, name)
            weight = self._weight(full_name)
            if weight.shape != shape:
                raise ValueError(
                    f"{self._checkpoint.path}: {full_name}: expected shape {shape}, got {weight.shape}"
                )
            there = self.place.put(weight, self._dtype)
            require_finite(f"{self._checkpoint.path}: {full_name}", there)
            linears[name.removesuffix(".weight")] = there
        vectors = {
            name: self._vector(_full_name(index, name)) for name in vector_shapes(self.config)
        }
        return DecoderBlock(self.config, index, self._rope, linears, vectors)

    def block_tensors(self, index: int) -> list[str]:
        """Names of the tensors that `block` reads."""
        shapes = linear_shapes(self.config) | vector_shapes(self.config)
        return [_full_name(index, name) for name in shapes]

    def forward(self, tokens: ArrayLike) -> Array:
        """Hidden states after the last block, float32 ``[..., T, hidden_size]``."""
        hidden = self.embed(tokens)
        *_, length, size = hidden.shape
        sequences = hidden.reshape(-1, length, size)
        for index in range(self.config.num_layers):
            block = self.block(index)
            for part in self.batches(sequences):
                block.forward(part)
        return hidden

    def batches(self, hidden: Array) -> Iterator[Array]:
        """Runs of whole sequences of ``[S, T, hidden_size]``, about `Place.batch_tokens` tokens each."""
        step = max(1, self.place.batch_tokens // hidden.shape[1])
        for start in range(0, len(hidden), step):
            yield hidden[start : start + step]

    def logits(self, hidden: Array) -> Array:
        """Final norm and output head: ``[..., hidden_size]`` to float32 ``[..., vocab_size]``.

        The result is large; `token_losses` never holds more than a tile of it.
        """
        head = self.place.put(self._checkpoint.tensor(self._head), self._dtype)
        return linear(self._final_norm(hidden), head, dtype=np.float32)

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
        tokens = self._tokens(tokens)
        length = tokens.shape[-1]
        if length < 2:
            raise ValueError("tokens: expected sequences of at least 2, got 1")
        # the last token of a sequence predicts none
        targets = np.roll(tokens, -1, axis=-1)
        targets[..., -1] = -1
        found = self._cross_entropy(self._final_norm(hidden), targets.ravel())
        return found.reshape(tokens.shape)[..., : length - 1]

    def loss(self, tokens: ArrayLike) -> float:
        """Mean of `token_losses` over ``tokens`` ``[..., T]``; perplexity is its exponential."""
        return float(self.token_losses(self.forward(tokens), tokens).mean(dtype=np.float64))

    @property
    def _dtype(self) -> np.dtype:
        """What products are computed in."""
        return self.place.product_dtype(self._checkpoint.info(EMBEDDINGS).dtype)

    def _final_norm(self, hidden: Array) -> Array:
        weight = self._vector("model.norm.weight")
        return rms_norm(hidden, weight, self.config.rms_norm_eps, self._dtype)

    def _cross_entropy(self, x: Array, targets: NDArray[np.int64]) -> NDArray[np.float32]:
        """``logsumexp(x head^T) - (x head^T)[target]`` for each vector, in parts of the vocabulary."""
        *_, size = x.shape
        x = x.reshape(-1, size)
        starts = range(0, len(targets), self.place.score_rows)
        tiles = []
        for start in starts:
            wanted = targets[start : start + self.place.score_rows]
            state = np.zeros((3, len(wanted)), np.float32)
            state[0] = LOWEST
            tiles.append((from_host(wanted, x), from_host(state, x)))
        for index, entries in enumerate(self._checkpoint.tiles(self._head, _VOCABULARY)):
            first, weight = index * _VOCABULARY, self.place.put(entries, self._dtype)
            for start, (wanted, state) in zip(starts, tiles, strict=True):
                rows = x[start : start + self.place.score_rows]
                add_scores(linear(rows, weight, dtype=np.float32), first, wanted, state)
        return np.concatenate([to_host(losses(state)) for _, state in tiles])

    def _vector(self, name: str) -> Array:
        """A norm or a bias, float32, all of it finite."""
        vector = self.place.put(self._checkpoint.tensor(name), np.float32)
        require_finite(f"{self._checkpoint.path}: {name}", vector)
        return vector

    def _require_finite_rows(self, rows: Array, tokens: NDArray[np.int64]) -> None:
        """Check the embeddings of tokens; an error says where in the table a value is not finite."""
        name = f"{self._checkpoint.path}: {EMBEDDINGS}"
        try:
            require_finite(name, rows)
        except ValueError:
            values = to_host(cast(rows, np.float32))
            row, column = np.argwhere(~np.isfinite(values))[0]
            shape = (self.config.vocab_size, self.config.hidden_size)
            where = int(tokens[row]) * shape[1] + int(column)
            raise not_finite(name, values[row, column], where, shape) from None

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
