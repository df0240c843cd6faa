"""Statistics of the inputs of experts, from the tokens that are routed to each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from numbacalib.methods import ExpertInputs
from numbacalib.models import DecoderBlock
from numbacalib.models.experts import Experts, ExpertsRun
from numbacalib.models.layer_tensors import Stage
from numbacalib.models.parts import Parts
from numbacalib.quantizer.memory import expert_bytes
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics

Group = list[tuple[Stage, ExpertInputs | InputStatistics | None]]


def expert_groups(
    block: DecoderBlock, parts: Parts, everything: bool, most_bytes: int
) -> Iterator[Group]:
    """Pass all tokens through a block's experts, in place, pausing once inputs of some are known.

    Yields, for a few experts at a time, the names of the layers that share an input and the statistics of
    that input: first for their gates and ups, then for their last layers. Meanwhile these experts' weights
    are loaded for the caller to replace, so that the pass continues with quantized ones.

    Parameters
    ----------
    block : DecoderBlock
        With experts in place of its MLP.
    parts : Parts of float32 arrays ``[..., hidden_size]``
        The residual stream.
    everything : bool
        Use all tokens for each expert, not only those routed to it.
    most_bytes : int
        Of the weights and Hessians that are held together.
    """
    experts = block.mlp
    assert isinstance(experts, Experts)
    run = ExpertsRun(experts, parts)
    *_, hidden = run.inputs[0].shape
    pooled = cache(partial(_collected, block, experts.stages[0][0], hidden, run.inputs))
    for numbers in _runs_of_experts(experts, hidden, most_bytes):
        with experts.loaded(numbers):
            yield [_entry(block, run, number, everything, pooled) for number in numbers]
            found = {number: run.activations(number) for number in numbers}
            yield [
                _exit(block, run, number, [rows for _, rows in found[number]], everything)
                for number in numbers
            ]
            for number in numbers:
                run.add(number, found[number])
    run.finish()


def groups_of_weights(block: DecoderBlock, most_bytes: int) -> Iterator[Group]:
    """Yield the groups of `expert_groups` without statistics of their inputs: no tokens pass."""
    experts = block.mlp
    assert isinstance(experts, Experts)
    hidden = block.linears[block.stages[0][0]].shape[1]
    for numbers in _runs_of_experts(experts, hidden, most_bytes):
        with experts.loaded(numbers):
            for stages in zip(*(experts.stages[number] for number in numbers), strict=True):
                yield [(stage, None) for stage in stages]


def _runs_of_experts(experts: Experts, hidden: int, most_bytes: int) -> Iterator[range]:
    """Cut a block's experts into runs that fit into memory together."""
    size, count = experts.mixture.size, experts.mixture.experts
    step = max(1, most_bytes // expert_bytes(hidden, size))
    return (range(first, min(first + step, count)) for first in range(0, count, step))


def _entry(
    block: DecoderBlock,
    run: ExpertsRun,
    number: int,
    everything: bool,
    pooled: Callable[[], InputStatistics],
) -> tuple[Stage, ExpertInputs | InputStatistics]:
    """Return the statistics of the inputs of an expert's gate and up."""
    stage, _ = run.experts.stages[number]
    if everything:
        return stage, pooled()
    *_, hidden = run.inputs[0].shape
    rows = [piece for _, piece in run.rows(number)]
    return stage, _inputs(block, stage, hidden, rows, pooled)


def _exit(
    block: DecoderBlock, run: ExpertsRun, number: int, rows: Sequence[Any], everything: bool
) -> tuple[Stage, ExpertInputs | InputStatistics]:
    """Return the statistics of the inputs of an expert's last layer."""
    _, stage = run.experts.stages[number]
    channels = run.experts.mixture.size

    def pooled() -> InputStatistics:
        return _collected(block, stage, channels, run.activations_of_all(number))

    return stage, pooled() if everything else _inputs(block, stage, channels, rows, pooled)


def _inputs(
    block: DecoderBlock,
    stage: Stage,
    channels: int,
    rows: Sequence[Any],
    pooled: Callable[[], InputStatistics],
) -> ExpertInputs:
    """Return the statistics of an expert, from the rows of its tokens."""
    collected = partial(_collected, block, stage, channels)

    @cache
    def halves() -> tuple[InputStatistics, InputStatistics]:
        first, second = _halves(rows)
        return collected(first), collected(second)

    return ExpertInputs(collected(rows), halves, pooled)


def _halves(rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Cut a sequence of matrices in two at half of their rows."""
    left = sum(len(part) for part in rows) // 2
    first, second = [], []
    for part in rows:
        count = min(left, len(part))
        if count:
            first.append(part[:count])
        if count < len(part):
            second.append(part[count:])
        left -= count
    return first, second


def _collected(
    block: DecoderBlock, stage: Stage, channels: int, rows: Iterable[Any]
) -> InputStatistics:
    """Collect inputs; an error names their layer."""
    statistics, layer = InputStatistics(channels), f"{block.name}.{stage[0]}"
    for part in rows:
        try:
            statistics.update(part)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}: activations overflow float32") from None
    require_finite(f"{layer}: mean of squared inputs", statistics.hessian)
    return statistics
