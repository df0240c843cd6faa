"""One decoder block: attention and MLP, and the folding of channel scales into the preceding layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.block_weights import Array, BlockWeights
from numbacalib.models.config import ModelConfig
from numbacalib.models.convolution_mixer import ConvolutionMixer
from numbacalib.models.delta_attention import DeltaAttention
from numbacalib.models.experts import Experts
from numbacalib.models.key_values import KeyValues
from numbacalib.models.latent_attention import LatentAttention
from numbacalib.models.layer_inputs import LayerInput
from numbacalib.models.layer_tensors import Stage, parts
from numbacalib.models.parts import Parts
from numbacalib.models.rope import RotaryEmbedding
from numbacalib.models.shared_keys import BorrowingAttention, LendingAttention
from numbacalib.models.state_space_mixer import StateSpaceMixer
from numbacalib.models.sublayers import MLP, Attention, Missing, Sublayer
from numbacalib.ops.matrix import from_host, scaled, to_host

__all__ = ["DecoderBlock"]


class DecoderBlock:
    """One decoder block: attention and MLP, each added to the residual stream.

    The forward pass is split at the inputs of linear layers (`numbacalib.models.sublayers`), so that a
    quantizer sees each input and replaces ``linears[name]`` before the next stage runs. Activations are
    ``[T, ...]`` for one sequence or ``[S, T, ...]`` for several of equal length, at positions
    ``0 .. T - 1``. The residual stream is float32; inputs of linear layers have `dtype`, and sums are
    float32.

    Parameters
    ----------
    name : str
        Prefix of its tensors' names, such as ``"model.layers.0"``.
    index : int
        The block's number.
    weights : BlockWeights
    rope : RotaryEmbedding or None

    Attributes
    ----------
    name : str
    attention, mlp : Sublayer
        `Missing` if the block has only the other.
    sublayers : tuple of Sublayer
        Those that it has, in execution order.
    linears : dict of str to array ``[M, K]``
        Weights of the linear layers by short name, such as ``"mlp.down_proj"``; assign to replace one.
        Those of experts are included while they are loaded: `Experts.loaded`.
    dtype : dtype
        Dtype of products: that of the weights as loaded.
    stages : tuple of tuple of str
        The linear layers in execution order, grouped by shared input; without experts.
    """

    def __init__(
        self, name: str, index: int, weights: BlockWeights, rope: RotaryEmbedding | None
    ) -> None:
        self.name = name
        self._index = index
        self._weights = weights
        self._rope = rope
        self.linears = weights.linears
        self.dtype = weights.dtype
        self.parallel = weights.config.architecture.parallel
        self.attention, self.mlp = _attention(weights, index, rope), _mlp(weights, index)
        last = [LayerInput(weights, index)] if weights.config.layer_input_size else []
        halves = (self.attention, self.mlp, *last)
        self.sublayers = tuple(half for half in halves if not isinstance(half, Missing))
        self.stages = tuple(
            stage
            for half in self.sublayers
            for stage in (*half.entry_stages, *half.middle_stages, *half.exit_stages)
        )

    def copied(self) -> DecoderBlock:
        """Return a copy, which keeps its weights when those of this block are replaced."""
        return DecoderBlock(self.name, self._index, self._weights.copied(), self._rope)

    def read_experts(self, read: Callable[[Iterable[str]], dict[str, Array]]) -> None:
        """Read weights of experts by another function of their short names, whenever they are loaded.

        Those that `read` does not return are read as before.
        """
        before = self._weights.read

        def found(kinds: Iterable[str]) -> dict[str, Array]:
            wanted = list(kinds)
            own = read(wanted)
            return own | before([kind for kind in wanted if kind not in own])

        self._weights.read = found

    def forward(self, hidden: Array, before: KeyValues | None = None) -> Array:
        """Run all stages on ``hidden`` ``[..., T, hidden_size]``, in place, and return it.

        With `before` the tokens follow those whose keys and values it holds, and add their own: only where
        `holds_keys`.
        """
        if not self.parallel:
            for half in self.sublayers:
                half.forward(hidden, before)
            return hidden
        x = self.mlp.input(hidden)
        self.attention.forward(hidden, before)
        return self.mlp.add_output(hidden, self.mlp.inner(x))

    def forward_parts(self, parts: Parts) -> None:
        """Run all stages on each part ``[..., T, hidden_size]`` of the tokens, in place."""
        if self.parallel:
            for part in parts.changed():
                self.forward(part)
            return
        for half in self.sublayers:
            half.forward_parts(parts)

    def producer(self, stage: Stage) -> str | None:
        """Name the norm or layer whose output channels a stage's inputs are proportional to, or None.

        With fewer key-value heads than heads, several of o_proj's inputs come from one output of v_proj.
        Channel scales are not folded into an output that other layers also read, nor into part of a layer.
        """
        config = self._weights.config
        mixing = (*self.attention.entry_stages, *self.attention.exit_stages)
        if config.delta_of(self._index) and stage in mixing:
            return None  # small layers also read the norm; heads share the output norm's weight
        norms, linears = config.architecture.norms, parts(config, self._index)
        if config.architecture.selector and stage[0] in {  # the indexer also reads these inputs
            linears[role].name for role in ("query_latent", "latent", "query")
        }:
            return None
        if stage in self.attention.exit_stages:
            kv_heads, _ = config.heads_of(self._index)
            if config.queries_of(self._index) != kv_heads or config.architecture.value_norm:
                return None
            if self._index in config.lenders:  # later blocks read its values
                return None
            return _alone(linears["value"]) if "value" in linears else None
        if stage in self.attention.middle_stages:
            role = "latent" if stage == (linears["key_value"].name,) else "query_latent"
            return norms[role]
        if stage not in (
            *self.attention.entry_stages,
            *self.mlp.entry_stages,
            *self.mlp.exit_stages,
        ):
            return None
        if stage in self.mlp.exit_stages:
            return _alone(linears["up"]) if "gate" in linears else None
        routed = isinstance(self.mlp, Experts) and stage in self.mlp.entry_stages
        routed = routed and "experts" not in norms
        if routed or (self.parallel and "mlp" not in norms):
            return None
        return norms.get("attention" if stage in self.attention.entry_stages else "mlp")

    def fold(
        self, stage: Stage, scales: Array, dtype: np.dtype
    ) -> tuple[Array, dict[str, NDArray[Any]]]:
        """Multiply the input channels of a stage's weights, and divide the norm or layer before it.

        The block's outputs stay the same, up to the rounding of sums and of biases: a norm's weight is
        rounded to its storage dtype, and the layers after it are scaled by the ratio to its rounded value.

        Parameters
        ----------
        stage : tuple of str
            One of `stages` that has a `producer`.
        scales : float32 [K], positive
        dtype : dtype
            Storage dtype of norms and biases.

        Returns
        -------
        scales : float32 [K]
            Exact scales of the channels.
        vectors : dict of str to array
            Changed norms and biases as stored, by short name with ``.weight`` or ``.bias``.
        """
        producer, held = self.producer(stage), self._weights.vectors
        factors = to_host(scales)
        before = {
            name: to_host(vector)
            for name, vector in held.items()
            if name.rpartition(".")[0] == producer
        }
        # norms multiply by their stored weight plus this
        offset = np.float32(self._weights.config.architecture.norm_offset)
        offsets = {
            name: offset * (name == f"{producer}.weight" and producer not in self.linears)
            for name in before
        }
        vectors = {
            name: (vector / factors - offsets[name]).astype(dtype)
            for name, vector in before.items()
        }
        if producer in self.linears:
            weight = self.linears[producer]
            self.linears[producer] = scaled(weight, 1.0, from_host(1 / factors, weight))
        else:
            weight = before[f"{producer}.weight"]
            kept = vectors[f"{producer}.weight"].astype(np.float32) + offset
            factors = np.divide(weight, kept, out=np.ones_like(weight), where=kept != 0)
        for name, vector in vectors.items():
            held[name] = from_host(vector.astype(np.float32) + offsets[name], scales)
        scales = from_host(factors, scales)
        for name in stage:
            self.linears[name] = scaled(self.linears[name], scales)
        return scales, vectors


def _mlp(weights: BlockWeights, index: int) -> Sublayer:
    if not weights.config.has(index, "mlp"):
        return Missing(weights)
    return (Experts if weights.config.mixture_of(index) else MLP)(weights, index)


def holds_keys(config: ModelConfig, index: int) -> bool:
    """Return whether tokens of a block meet only where keys and values of earlier ones can be held."""
    return _kind_of_attention(config, index) in (Attention, Missing)


def _attention(weights: BlockWeights, index: int, rope: RotaryEmbedding | None) -> Sublayer:
    kind = _kind_of_attention(weights.config, index)
    if kind is Missing:
        return Missing(weights)
    if issubclass(kind, Attention):
        return kind(weights, index, rope)
    return kind(weights, index)


def _kind_of_attention(config: ModelConfig, index: int) -> type[Any]:
    """Return the class of a block's attention, or of what replaces it."""
    if not config.has(index, "attention"):
        return Missing
    if config.delta_of(index) is not None:
        return DeltaAttention
    if config.convolution_of(index) is not None:
        return ConvolutionMixer
    if config.state_space_of(index) is not None:
        return StateSpaceMixer
    if config.latent is not None:
        return LatentAttention
    if config.key_source(index) is not None:
        return BorrowingAttention
    return LendingAttention if index in config.lenders else Attention


def _alone(part: Any) -> str | None:
    """Name the layer of a part if the part is all of its rows, else return None."""
    return part.name if part.end - part.begin == part.rows else None
