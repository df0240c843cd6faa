"""Reader of the ``quantization_config`` of compressed-tensors formats with packed weights.

Fields as in compressed-tensors 0.20 (``quantization/quant_config.py``, ``quant_args.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from numbacalib.formats.target_pattern import TargetPattern
from numbacalib.models.fields import Fields

__all__ = ["FORMAT", "METHOD", "PackedScheme", "PackedSchemes", "read_schemes"]

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"

_PATTERN = "re:"
_MOST_PATTERNS = 100

# Keys on how the codes were found: they do not affect the stored weights.
_HARMLESS_CONFIG = (
    "quantization_status",
    "global_compression_ratio",
    "version",
    "ignore",
    "dequantize",
    "run_compressed",
)
_HARMLESS_WEIGHTS = ("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype")


class PackedScheme(NamedTuple):
    """Quantization scheme of some of the layers."""

    bits: int
    symmetric: bool
    group_size: int | None
    """Input channels that share a scale; None is one scale per row."""


class PackedSchemes:
    """Scheme of each layer: by its name, else by an expression, else by its class.

    Parameters
    ----------
    groups : sequence of (targets, scheme)
    """

    def __init__(self, groups: Sequence[tuple[Sequence[str], PackedScheme]]) -> None:
        self._named: dict[str, PackedScheme] = {}
        self._patterns: list[tuple[TargetPattern, PackedScheme]] = []
        for targets, scheme in groups:
            for target in targets:
                if target.startswith(_PATTERN):
                    pattern = TargetPattern(target.removeprefix(_PATTERN))
                    self._patterns.append((pattern, scheme))
                else:
                    self._named.setdefault(target, scheme)
        if len(self._patterns) > _MOST_PATTERNS:
            raise ValueError(
                f"expected at most {_MOST_PATTERNS} expressions, got {len(self._patterns)}"
            )

    def of(self, layer: str) -> PackedScheme:
        """Return the scheme of a linear layer.

        Raises
        ------
        ValueError
            If no target matches it.
        """
        if layer in self._named:
            return self._named[layer]
        for pattern, scheme in self._patterns:
            if pattern.matches(layer):
                return scheme
        if "Linear" in self._named:
            return self._named["Linear"]
        raise ValueError(f"quantization_config: expected a config group for {layer}, found none")


def read_schemes(
    config: Fields, form: str = FORMAT, read: Callable[[Fields], PackedScheme] | None = None
) -> PackedSchemes:
    """Read the config groups, and refuse every option that changes the meaning of a packed weight.

    Parameters
    ----------
    config : Fields
        The ``quantization_config``.
    form : str, default "pack-quantized"
        Its format, the same for all groups.
    read : callable, optional
        Reads the ``weights`` of a group; by default integers of 2 to 8 bits.

    Raises
    ------
    ValueError
        For weights quantized in any other way, quantized activations and unknown keys; one line that
        names the key.
    """
    config.choice("quant_method", (METHOD,))
    config.choice("format", (form,))
    config.nothing("kv_cache_scheme", "sparsity_config", "transform_config")
    groups = config.object("config_groups", None) or Fields({}, config.label("config_groups"))
    found = []
    for name in groups:
        group = groups.object(name)
        group.choice("format", (form,), None)
        group.nothing("input_activations", "output_activations")
        weights = group.object("weights")
        found.append((group.texts("targets"), (read or _integers)(weights)))
        weights.refuse_unread(_HARMLESS_WEIGHTS)
        group.refuse_unread()
    config.refuse_unread(_HARMLESS_CONFIG)
    try:
        return PackedSchemes(found)
    except ValueError as error:
        raise ValueError(f"{groups.label('targets')}: {error}") from None


def _integers(weights: Fields) -> PackedScheme:
    weights.choice("type", ("int",))
    weights.nothing("dynamic", "block_structure")
    group_size = weights.integer("group_size", -1, default=None)
    if weights.choice("strategy", ("group", "channel")) == "channel":
        group_size = None
    elif group_size is None or group_size < 1:
        raise weights.error("group_size", "a positive integer where the strategy is group")
    bits = weights.integer("num_bits", 2, 8)
    return PackedScheme(bits, weights.flag("symmetric", True), group_size)
