"""Forward pass of a decoder on either device, one block in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbacalib.models.block import DecoderBlock
from numbacalib.models.block_weights import Array, BlockWeights, normalized
from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.layer_inputs import LayerTables
from numbacalib.models.layer_tensors import (
    EMBEDDINGS,
    HEAD,
    HEAD_BIAS,
    NORM,
    NORM_BIAS,
    POSITIONS,
    expert_shapes,
    is_norm,
    linear_shapes,
    outer_shapes,
    vector_shapes,
)
from numbacalib.models.loss_sums import LossSums
from numbacalib.models.parts import Parts, StreamedParts
from numbacalib.models.place import HOST, Place
from numbacalib.models.read_ahead import ReadAhead
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.models.stream import states_of, stream_size, token_column
from numbacalib.ops.linear import linear
from numbacalib.ops.matrix import (
    add_scaled,
    cast,
    from_host,
    put_columns,
    put_rows,
    row_range,
    scaled,
    take,
    to_host,
    zeros,
)
from numbacalib.ops.token_loss import cap
from numbacalib.runtime.finite import require_finite, start_finite_check
from numbacalib.runtime.not_finite import not_finite

__all__ = ["Decoder"]

# Vocabulary entries in a tile: embeddings, head and logits are never held whole.
VOCABULARY = 8192


class Decoder:
    """A language model that reads its weights block by block.

    Parameters
    ----------
    checkpoint : Checkpoint
    weight : callable, optional
        From full tensor name to float weight ``[M, K]``, for the blocks' linear layers: unpacks them if
        the checkpoint stores packed codes. By default they are read as stored, as embeddings, norms,
        biases and head always are.
    place : Place, default the host
        Device of the forward pass.

    Raises
    ------
    ValueError
        If a tensor is missing, has another shape than the configuration says, or has no floating-point
        dtype. Raised before any weight is read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weight: Callable[[str], NDArray[Any]] | None = None,
        place: Place = HOST,
    ) -> None:
        self.config = checkpoint.config
        self.place = place
        self.checkpoint = checkpoint
        self._weight = ReadAhead(weight or checkpoint.tensor, place)
        self._ropes: dict[str, RotaryEmbedding] = {}
        self.stream_size = stream_size(self.config)
        self._tables = LayerTables(checkpoint, place) if self.config.layer_input_size else None
        self._head = EMBEDDINGS if self.config.tie_word_embeddings else HEAD
        table = (self.config.vocab_size, self.config.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: table, self._head: table}
        shapes |= outer_shapes(self.config)
        for index in range(self.config.num_layers):
            linears = self._linear_shapes(index) if weight is None else {}
            for name, shape in (linears | vector_shapes(self.config, index)).items():
                shapes[_full_name(index, name)] = shape
        checkpoint.require_floats(shapes)

    def embed(self, tokens: ArrayLike, first: int = 0) -> Array:
        """Return the residual stream float32 ``[..., T, stream_size]`` of integer ``tokens`` ``[..., T]``.

        The tokens are at positions from `first` on. The stream's first columns are their embeddings; most
        decoders have no others (`numbacalib.models.stream`).

        Raises
        ------
        ValueError
            For a token outside the vocabulary, or one whose embedding is not finite.
        """
        tokens = self._tokens(tokens)
        hidden = self.place.zeros((tokens.size, self.stream_size))
        self._embed(tokens, hidden, self.place, first)
        return hidden.reshape(*tokens.shape, self.stream_size)

    def states(self, tokens: ArrayLike, *, streamed: bool = False) -> Parts:
        """Embed sequences ``[S, T]`` as parts that go through a layer together.

        With `streamed` the embeddings are computed on the host, and stay in its pinned memory.

        Raises
        ------
        ValueError
            As `embed`.
        """
        if not streamed:
            return Parts(self.batches(self.embed(tokens)))
        tokens = self._tokens(tokens)
        shape = tokens.size, self.stream_size
        hidden = self.place.staging(4 * math.prod(shape)).view(np.float32).reshape(shape)
        self._embed(tokens, hidden, HOST)
        return StreamedParts(
            self.place, self.batches(hidden.reshape(*tokens.shape, self.stream_size))
        )

    def _embed(
        self, tokens: NDArray[np.int64], hidden: Array, place: Place, first: int = 0
    ) -> None:
        """Set the rows of `hidden`, at a place, to the embeddings of tokens ``[..., T]``."""
        most, length = self.config.selected, first + tokens.shape[-1]
        if most and length > most:
            raise ValueError(
                f"tokens: expected sequences of at most {most}, which sparse attention sees whole, got "
                f"{length}: its indexer is not run"
            )
        flat = tokens.ravel()
        if self._tables is not None:
            self._tables.know(flat)
        for index, rows in enumerate(self.checkpoint.tiles(EMBEDDINGS, VOCABULARY)):
            here = np.flatnonzero(flat // VOCABULARY == index)
            if len(here):
                wanted = flat[here] % VOCABULARY
                few = len(here) < len(rows)
                found = place.put(rows[wanted]) if few else take(place.put(rows), wanted, 0)
                self._require_finite_rows(found, flat[here])
                put_rows(hidden, here, self._entering(found, flat[here]))
        if self.config.positions:
            self._add_positions(hidden, range(first, length), place)

    def _add_positions(self, hidden: Array, places: range, place: Place) -> None:
        """Add the learned embeddings of positions to sequences of these, ``[S * T, hidden_size]``."""
        first, most = self.config.first_position, self.config.positions
        length = places.stop
        if length > most - first:
            raise ValueError(
                f"tokens: expected sequences of at most {most - first}, for which there are learned "
                f"positions, got {length}"
            )
        stored = self.checkpoint.tensor(POSITIONS)[first + places.start : first + length]
        rows = place.put(stored, np.float32)
        require_finite(f"{self.checkpoint.path}: {POSITIONS}", rows)
        for start in range(0, len(hidden), len(places)):
            add_scaled(row_range(hidden, start, start + len(places)), rows, 1.0)

    def _entering(self, embeddings: Array, tokens: NDArray[np.int64]) -> Array:
        """Return the stream's rows that enter the first block, float32."""
        states = cast(embeddings, np.float32)
        if self.config.embedding_scale != 1:
            states = scaled(states, self.config.embedding_scale)
        if self.stream_size == self.config.hidden_size:
            return states
        rows = zeros((len(tokens), self.stream_size), states)
        put_columns(rows, 0, states)
        if self._tables is not None:
            begin, _ = token_column(self.config)
            put_columns(rows, begin, from_host(tokens[:, None].astype(np.float32), states))
        return rows

    def block(self, index: int) -> DecoderBlock:
        """Read block ``index``, ``0 .. num_layers - 1``, without its experts, and keep no reference to it.

        For a device, the next block is then read ahead into host memory.

        Raises
        ------
        ValueError
            If a value is not finite: names the file, the tensor and the index.
        """
        layers = [name.removesuffix(".weight") for name in linear_shapes(self.config, index)]
        linears = self._linears(index, layers)
        vectors = {
            name: self._vector(_full_name(index, name))
            for name in vector_shapes(self.config, index)
        }
        if index + 1 < self.config.num_layers:
            following = linear_shapes(self.config, index + 1)
            self._weight.start(_full_name(index + 1, name) for name in following)
        read = partial(self._linears, index)
        weights = BlockWeights(self.config, linears, vectors, read, self._tables)
        return DecoderBlock(_full_name(index), index, weights, self._rope(index))

    def _linear_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a block's linear layers, experts included."""
        return linear_shapes(self.config, index) | expert_shapes(self.config, index)

    def _linears(self, index: int, layers: Iterable[str]) -> dict[str, Array]:
        """Read weights of a block's linear layers, by short name, and check that all are finite."""
        shapes = self._linear_shapes(index)
        linears = {}
        for layer in layers:
            name, shape = _full_name(index, f"{layer}.weight"), shapes[f"{layer}.weight"]
            weight = self._weight(name)
            if weight.shape != shape:
                raise ValueError(
                    f"{self.checkpoint.path}: {name}: expected shape {shape}, got {weight.shape}"
                )
            linears[layer] = self.place.put(weight, self._dtype)
        path = self.checkpoint.path
        start_finite_check(
            {f"{path}: {_full_name(index, layer)}.weight": linears[layer] for layer in linears}
        )()
        return linears

    def _rope(self, index: int) -> RotaryEmbedding | None:
        """Return a block's rotary embedding, shared by all blocks with the same parameters."""
        rope = self.config.rope_of(index)
        if rope is None:
            return None
        own = RotaryEmbedding(rope, self.place)
        return self._ropes.setdefault(str(rope), own)

    def block_tensors(self, index: int) -> list[str]:
        """Names of the tensors of a block, experts included."""
        shapes = self._linear_shapes(index) | vector_shapes(self.config, index)
        return [_full_name(index, name) for name in shapes]

    def forward(self, tokens: ArrayLike) -> Array:
        """Hidden states after the last block, float32 ``[..., T, hidden_size]``."""
        hidden = self.embed(tokens)
        *_, length, size = hidden.shape
        parts = Parts(self.batches(hidden.reshape(-1, length, size)))
        for index in range(self.config.num_layers):
            self.block(index).forward_parts(parts)
        return hidden

    def batches(self, hidden: Array) -> Iterator[Array]:
        """Yield whole sequences of ``[S, T, hidden_size]``, about `Place.batch_tokens` tokens at a time."""
        step = max(1, self.place.batch_tokens // hidden.shape[1])
        for start in range(0, len(hidden), step):
            yield hidden[start : start + step]

    def logits(self, hidden: Array) -> Array:
        """Apply the final norm and output head: ``[..., hidden_size]`` to float32 ``[..., vocab_size]``.

        The result is large; `token_losses` holds one tile of it at a time.
        """
        head = self.place.put(self.checkpoint.tensor(self._head), self._dtype)
        return self._scores(self.head_inputs(hidden), head, self._head_bias())

    def token_losses(self, hidden: Array, tokens: ArrayLike) -> Array:
        """Negative log likelihood, in nats, of each token after the first of its sequence.

        Parameters
        ----------
        hidden : float32 ``[..., T, hidden_size]``
            States after the last block, as `forward` returns them.
        tokens : integer ``[..., T]``
            The tokens that the states were computed from.

        Returns
        -------
        float32 ``[..., T - 1]``

        Raises
        ------
        ValueError
            For a token outside the vocabulary, or ``T`` below 2.
        """
        sums = self.loss_sums(hidden, tokens)
        for tile in self.score_tiles(hidden):
            sums.add(*tile)
        return sums.losses()

    def loss_sums(self, hidden: Array, tokens: ArrayLike) -> LossSums:
        """Return the sums of `token_losses` before the first of `score_tiles`; the same errors."""
        tokens = self._tokens(tokens)
        if tokens.shape[-1] < 2:
            raise ValueError("tokens: expected sequences of at least 2, got 1")
        return LossSums(tokens, self.place.score_rows, hidden)

    def head_tiles(self) -> Iterator[tuple[Array, Array | None]]:
        """Read the head by tiles of the vocabulary: weight ``[entries, hidden_size]``, and bias or None."""
        biases, first = self._head_bias(), 0
        for entries in self.checkpoint.tiles(self._head, VOCABULARY):
            end = first + len(entries)
            bias = None if biases is None else row_range(biases, first, end)
            yield self.place.put(entries, self._dtype), bias
            first = end

    def score_tiles(
        self, hidden: Array, head: Iterable[tuple[Array, Array | None]] | None = None
    ) -> Iterator[tuple[int, int, Array]]:
        """Yield logits of states ``[..., hidden_size]`` tile by tile, one in memory at a time.

        `head` are held `head_tiles`; by default they are read.

        Yields
        ------
        start, first : int
            Index of the tile's first state, and of its first vocabulary entry.
        scores : float32 ``[states, entries]``
        """
        x = self.head_inputs(hidden)
        *_, size = x.shape
        x = x.reshape(-1, size)
        for index, tile in enumerate(self.head_tiles() if head is None else head):
            for start in range(0, len(x), self.place.score_rows):
                rows = x[start : start + self.place.score_rows]
                yield start, index * VOCABULARY, self._scores(rows, *tile)

    def loss(self, tokens: ArrayLike) -> float:
        """Mean of `token_losses` over ``tokens`` ``[..., T]``; perplexity is its exponential."""
        return float(self.token_losses(self.forward(tokens), tokens).mean(dtype=np.float64))

    @property
    def _dtype(self) -> np.dtype:
        """Return the dtype of products."""
        return self.place.product_dtype(self.checkpoint.info(EMBEDDINGS).dtype)

    def head_inputs(self, hidden: Array) -> Array:
        """Return the head's inputs, after the final norm, whose weight includes the factor of logits."""
        scale = self.config.logit_scale
        weight, bias = (
            scaled(self._vector(name), scale) if name in outer_shapes(self.config) else None
            for name in (NORM, NORM_BIAS)
        )
        states = states_of(self.config, hidden)
        return normalized(self.config, states, weight, bias, self._dtype)

    def _head_bias(self) -> Array | None:
        return self._vector(HEAD_BIAS) if self.config.head_bias else None

    def _scores(self, x: Array, head: Array, bias: Array | None) -> Array:
        """Return logits of vocabulary entries, soft-capped."""
        scores = linear(x, head, bias, dtype=np.float32)
        if self.config.logit_cap:
            cap(scores, self.config.logit_cap)
        return scores

    def _vector(self, name: str) -> Array:
        """Return a norm's weight plus the architecture's offset, or a bias: float32, finite."""
        stored = self.checkpoint.tensor(name)
        if self.config.architecture.norm_offset and is_norm(self.config, name):
            stored = stored.astype(np.float32) + np.float32(self.config.architecture.norm_offset)
        vector = self.place.put(stored, np.float32)
        require_finite(f"{self.checkpoint.path}: {name}", vector)
        return vector

    def _require_finite_rows(self, rows: Array, tokens: NDArray[np.int64]) -> None:
        """Check that the embeddings of tokens are finite; an error gives the index in the table."""
        name = f"{self.checkpoint.path}: {EMBEDDINGS}"
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


def _full_name(index: int, *name: str) -> str:
    return ".".join(["model.layers", str(index), *name])
