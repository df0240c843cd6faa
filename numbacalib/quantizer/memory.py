"""Memory of a run's arrays where the model runs, known from shapes before its first block."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from numbacalib.models import EMBEDDINGS, Decoder, Place
from numbacalib.models.config import ModelConfig
from numbacalib.models.decoder import VOCABULARY
from numbacalib.models.layer_tensors import expert_shapes, linear_shapes, stages
from numbacalib.models.mixture import Mixture
from numbacalib.models.roles import columns_by_role
from numbacalib.models.sampling import Room
from numbacalib.models.stream import stream_size
from numbacalib.quantizer.outer import is_outer
from numbacalib.quantizer.settings import PAIRED_TOKENS, Settings
from numbacalib.statistics.inputs import DRIFT_TOKENS

_COPIES = 4
"""Float32 copies of a stage's weights: as read, compensated, as codes, dequantized."""
_IMPROVED = 3
"""Further copies while grids are refitted and codes re-chosen: errors, their stand-ins, products."""
_SQUARES = 4
"""Matrices [K, K] of a stage: its Hessian, that damped and factored, couplings, one more for a search."""
_WORK = 64 << 20
"""Partial sums of products, and the memory of libraries."""
_PASSING = 4
"""Parts of a residual stream that are on the device at once while it streams."""
_MARGIN = 1.1
"""Measured overhead factor of a memory pool with arrays of different sizes."""


@dataclass(frozen=True)
class Demand:
    """Settings and shapes that decide how much memory a run takes."""

    config: ModelConfig
    place: Place
    settings: Settings
    layers: Collection[str]
    """Full names, without ``.weight``, of the quantized layers."""
    dtype: np.dtype
    """Stored dtype of the model's weights."""
    calibrated: bool = True

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        settings: Settings,
        layers: Collection[str],
        *,
        calibrated: bool = True,
    ) -> Demand:
        """Return the demand of a run of a model."""
        dtype = decoder.checkpoint.info(EMBEDDINGS).dtype
        return cls(decoder.config, decoder.place, settings, layers, dtype, calibrated)

    @property
    def on_host(self) -> bool:
        """True if the model runs on the host."""
        return self.place.name == "cpu"

    def must_stream(self, tokens: int) -> bool:
        """Return whether the residual stream of so many tokens exceeds a device, and streaming takes less.

        If there is no room for that either, `numbacalib.quantizer.plan.require_memory` refuses the run.
        """
        free = self.place.free_bytes()
        if self.on_host or free is None or self.working_bytes(tokens) <= free:
            return False
        return self.working_bytes(tokens, streamed=True) < self.working_bytes(tokens)

    def least_bytes(self, tokens: int) -> int:
        """Lesser `working_bytes` of both ways, with a streamed residual stream or without."""
        ways = [False] if self.on_host else [False, True]
        return min(self.working_bytes(tokens, streamed=way) for way in ways)

    def working_bytes(self, tokens: int, *, streamed: bool = False) -> int:
        """Bytes of arrays while the largest block is quantized on so many tokens."""
        blocks = range(self.config.num_layers)
        most = max(self._block_bytes(index, tokens, streamed) for index in blocks)
        if any(map(is_outer, self.layers)):
            most = max(most, self._outer_bytes(tokens))
        return int(most if self.on_host else _MARGIN * most + _WORK)

    def writing_room(self, tokens: int, *, streamed: bool = False) -> Room:
        """Memory in which a model writes text: within `working_bytes` of a run on so many tokens."""
        config = self.config
        blocks = range(config.num_layers)
        size = self.place.product_dtype(self.dtype).itemsize
        most = max(self._block_bytes(index, tokens, streamed) for index in blocks)
        widest = [_widest(config, index) for index in blocks]
        numbers = max(self._numbers_of_a_token(index, widest[index]) for index in blocks)
        entries = min(VOCABULARY, config.vocab_size)
        tile = 2 * size * entries * config.hidden_size  # of the head, as read and here
        return Room(most - tile, size * numbers, 4 * stream_size(config), 4 * entries)

    def pinned_bytes(self, tokens: int) -> int:
        """Bytes of host memory of the residual streams, run there or streamed to a device."""
        return sum(self._passing(tokens)) * 4 * stream_size(self.config)

    @property
    def streams(self) -> int:
        """Number of residual streams: 2, with the original model's, for a propagated target."""
        return 2 if self.settings.target == "propagated" else 1

    def _passing(self, tokens: int) -> list[int]:
        """Tokens of each residual stream."""
        return [tokens, min(tokens, PAIRED_TOKENS)][: self.streams]

    def _moments(self, tokens: int) -> int:
        """Number of matrices [K, K] collected: the Hessian, and two moments with the original model."""
        if self.streams == 1:
            return 1
        # those of tokens that the original model does not see, and what they are merged into
        return 3 if tokens <= PAIRED_TOKENS else 6

    def _block_bytes(self, index: int, tokens: int, streamed: bool) -> int:
        config, place, streams = self.config, self.place, self.streams
        size = place.product_dtype(self.dtype).itemsize
        shapes = linear_shapes(config, index)
        weights = streams * size * sum(rows * channels for rows, channels in shapes.values())
        widest = _widest(config, index)
        together = min(tokens, place.batch_tokens)
        batch = size * together * self._numbers_of_a_token(index, widest)
        if streams > 1:  # their differences, in a layer's inputs and in the stream itself
            shown = min(together, DRIFT_TOKENS)
            batch += size * (shown * widest + together * stream_size(config))
        staying = sum(
            self._staying_bytes(index, own, widest, streamed) for own in self._passing(tokens)
        )
        moving = sum(min(own, _PASSING * together) for own in self._passing(tokens))
        passing = 4 * stream_size(config) * moving if streamed else 0
        squares = _SQUARES + 2 * (streams - 1) if self.calibrated else 0
        sizes = [stage_size(config, index, stage, self.layers) for stage in stages(config, index)]
        gathering = batch + passing + 4 * self._moments(tokens) * widest**2
        improved = self.settings.refits or self.settings.descents
        copies = _COPIES + (_IMPROVED if improved else 0)
        solving = 4 * max(
            squares * channels**2 + copies * rows * channels for rows, channels in sizes
        )
        mixture = config.mixture_of(index) if self.calibrated else None
        experts = 0 if mixture is None else self._expert_bytes(mixture, squares)
        return weights + staying + max(gathering, solving, experts)

    def _staying_bytes(self, index: int, tokens: int, widest: int, streamed: bool) -> int:
        """Bytes of a stream that stays on the device, and of what a sublayer holds for all its tokens."""
        hidden, size = self.config.hidden_size, self.place.product_dtype(self.dtype).itemsize
        states = 0 if streamed else 4 * stream_size(self.config) * tokens
        held = 0 if streamed else self._held_bytes(index, tokens, widest, size)
        if self.config.mixture_of(index) is not None and self.calibrated:
            held = max(held, (size + 4) * tokens * hidden)  # inputs and sums of outputs
        return states + held

    def _numbers_of_a_token(self, index: int, widest: int) -> int:
        """Activations per token held at once, in attention or in the MLP, with their input."""
        hidden, shapes = self.config.hidden_size, linear_shapes(self.config, index)
        entering = sum(shapes[f"{kind}.weight"][0] for kind in stages(self.config, index)[0])
        # projections before and after their norms, and the contexts
        attention = 2 * entering + columns_by_role(self.config, index)["output"]
        return hidden + max(attention, 2 * widest + hidden)

    def _expert_bytes(self, mixture: Mixture, squares: int) -> int:
        """Bytes of the experts that are loaded together, and of quantizing one."""
        hidden, size = mixture.input_size(self.config.hidden_size), mixture.size
        each = expert_bytes(hidden, size)
        together = min(mixture.experts * each, max(each, self.place.held_bytes))
        return together + 4 * (squares * hidden**2 + _COPIES * 2 * size * hidden)

    def _outer_bytes(self, tokens: int) -> int:
        """Bytes of arrays while the head is quantized, or the embeddings."""
        size = self.config.hidden_size
        squares = _SQUARES if self.calibrated else 0
        states = tokens if self.calibrated else 0
        return 4 * size * (squares * size + _COPIES * self.config.vocab_size + states)

    def _held_bytes(self, index: int, tokens: int, widest: int, size: int) -> int:
        """Bytes of a stage's inputs held for all tokens: those of attention's last layer always."""
        contexts = size * tokens * columns_by_role(self.config, index)["output"]
        wide = size * tokens * widest
        return max(contexts, wide if wide <= self.place.held_bytes else 0)


def _widest(config: ModelConfig, index: int) -> int:
    """Channels of the widest layer of a block."""
    return max(channels for _, channels in linear_shapes(config, index).values())


def expert_bytes(hidden: int, size: int) -> int:
    """Bytes of an expert's weights in float32, its Hessians, and those of the halves of its tokens."""
    return 4 * (3 * hidden * size + 3 * hidden**2 + 3 * size**2)


def stage_size(
    config: ModelConfig, index: int, stage: tuple[str, ...], layers: Collection[str]
) -> tuple[int, int]:
    """Total rows of a stage's quantized layers, and their channels."""
    shapes = linear_shapes(config, index) | expert_shapes(config, index)
    own = [shapes[f"{kind}.weight"] for kind in stage if f"model.layers.{index}.{kind}" in layers]
    return sum(rows for rows, _ in own), shapes[f"{stage[0]}.weight"][1]
