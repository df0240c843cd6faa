"""Settings of a run, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from numbacalib.methods import LayerSettings
from numbacalib.methods.layer import RANGES, TARGETS
from numbacalib.methods.order import ACT_ORDERS
from numbacalib.runtime import checks

CHANNEL_SCALES = ("none", "awq")
MAGNITUDES = ("mean", "max")
EXPERTS = ("routed", "all")
CHOICES = {
    "ranges": ("auto", *RANGES),
    "target": ("auto", *TARGETS),
    "act_order": ACT_ORDERS,
    "channel_scales": CHANNEL_SCALES,
    "awq_magnitude": MAGNITUDES,
    "experts": EXPERTS,
}
"""Allowed values of settings with a fixed choice, by name."""

PAIRED_TOKENS = 1 << 15
"""Most tokens that also run through the original model for a propagated target: as many as the command
takes by default. They need only determine a layer's channels; an error in directions that they do not
determine enters the target scaled by `target_strength`."""

OWN_TEXT = 0.25
"""Share of the calibration sequences that a model writes itself. One half leaves less divergence on other
kinds of text, and more on the calibration's."""


@dataclass(frozen=True, kw_only=True)
class Settings(LayerSettings):
    """Settings of a model's quantization; each layer's `scale_dtype` is the model's own."""

    ranges: str = "auto"
    """Ranges as in `LayerSettings`, or "auto": "weighted" with gptq, with which most measured models lose
    less, and "full" with rtn, which then needs no text."""
    target: str = "auto"
    """Target as in `LayerSettings`, or "auto": "propagated" if gptq runs over a text and the model has no
    experts, otherwise "layerwise"."""
    full_range: bool | None = None
    refit: bool | None = None
    passes: int | None = None
    shrinkage: float | None = 0.1
    """Share as in `LayerSettings`: a tenth brings models closer to the original on kinds of text other than
    the calibration's, and as close on its own kind."""
    act_order: str = "desc"
    """Order of the columns; "desc" gives lower perplexity than the stored order."""
    static_groups: bool = True
    channel_scales: str = "none"
    """Scaling of input channels first, folded into their producers: "none" or "awq"."""
    awq_magnitude: str = "mean"
    """Magnitude that the scales are powers of: "mean" or "max" of a channel's absolute inputs."""
    awq_weight_term: bool = False
    """True to let the scales also fall with the channel's weights: see `awq_scales`."""
    experts: str = "routed"
    """Tokens of an expert's statistics: those "routed" to it, or "all" of the layer."""
    skip: tuple[str, ...] = ()
    """Shell-style patterns of the names of layers that stay unquantized."""
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    """Bits of layers by patterns of their names, instead of `bits`; the last matching pattern counts."""
    size: float | None = None
    """Bits per weight that all layers of blocks may take together, scales included: bits and group size of
    each are chosen for it, instead of `bits` and `group_size`."""
    lm_head: bool = False
    """True to quantize the head too, where the format stores it: a tied one with the embeddings."""
    embeddings: bool = False
    """True to round the embeddings too, where the format stores them."""
    samples: int = 64
    """Calibration sequences, evenly spaced over the text."""
    sequence_length: int = 512
    own_text: float | None = None
    """Share of the calibration sequences that the model writes itself, instead of the text's: brings it
    closer to the original on kinds of text other than the calibration's. By default `OWN_TEXT`, or 0 for a
    model of experts, which are read anew for each token of a piece."""
    max_fallbacks: float = 0.1
    """Share of the layers that may need more damping than `percdamp` before the run fails."""

    def __post_init__(self) -> None:
        if self.ranges == "auto":
            object.__setattr__(self, "ranges", "weighted" if self.method == "gptq" else "full")

    def check(self) -> None:
        """See `LayerSettings`."""
        LayerSettings.check(replace(self, target="layerwise") if self.target == "auto" else self)

    def settled(self, *, text: bool, experts: bool) -> Settings:
        """Return the settings with target and own text resolved, for a run with or without a `text`."""
        dense = text and not experts
        target, own_text = self.target, self.own_text
        if target == "auto":
            target = "propagated" if dense and self.method == "gptq" else "layerwise"
        if own_text is None:
            own_text = OWN_TEXT if dense else 0.0
        return replace(self, target=target, own_text=own_text)

    @property
    def grid_options(self) -> list[str]:
        """Names of the attributes that set another grid than the default."""
        names = ("bits", "group_size", "symmetric")
        found = [name for name in names if getattr(self, name) != DEFAULTS[name]]
        return found + (["layer_bits"] if self.layer_bits else [])

    def skips(self, layer: str) -> bool:
        """Return whether a layer stays unquantized."""
        return any(fnmatchcase(layer, pattern) for pattern in self.skip)

    def bits_of(self, layer: str) -> int:
        """Bits of a layer."""
        fitting = [bits for pattern, bits in self.layer_bits.items() if fnmatchcase(layer, pattern)]
        return fitting[-1] if fitting else self.bits

    def check_layers(self, layers: Iterable[str]) -> None:
        """Check that every pattern fits one of a model's layers, and that not all are skipped.

        Raises
        ------
        ValueError
            Naming the pattern.
        """
        names = list(layers)
        for option, patterns in (("skip", self.skip), ("bits", self.layer_bits)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ValueError(
                        f"{option}: expected patterns of layers such as {names[0]}, none fits {pattern!r}"
                    )
        if all(self.skips(name) for name in names if name.startswith("model.layers.")):
            raise ValueError("skip: expected patterns that leave a layer to quantize")


DEFAULTS = {each.name: each.default for each in fields(Settings)}
"""Defaults of all settings, by their names."""


def check(settings: Settings, importance: str | Path | None) -> None:
    """Check the settings that do not depend on a layer, before anything is read."""
    settings.check()
    if settings.method == "kmeans":
        raise ValueError("method: expected gptq or rtn, since the file format has no codebooks")
    check_sequences(settings.samples, settings.sequence_length)
    if isinstance(settings.skip, str):
        raise TypeError("skip: expected a sequence of patterns, got one")
    for pattern, bits in settings.layer_bits.items():
        checks.integer(f"bits of {pattern}", bits, 2, 8)
    if settings.size is not None:
        if not 0 < checks.finite_number("size", settings.size) <= 16:
            raise ValueError(f"size: expected bits a weight up to 16, got {settings.size}")
        if settings.layer_bits:
            raise ValueError("size: expected none with bits of single layers, which it chooses")
        if settings.method != "gptq":
            raise ValueError(f"size: expected none with {settings.method}, which has no factor")
    if settings.own_text is not None:
        checks.share("own_text", settings.own_text)
    checks.share("max_fallbacks", settings.max_fallbacks)
    for name in ("awq_weight_term", "lm_head", "embeddings"):
        checks.boolean(name, getattr(settings, name))
    checks.one_of("channel_scales", settings.channel_scales, CHANNEL_SCALES)
    checks.one_of("experts", settings.experts, EXPERTS)
    checks.one_of("awq_magnitude", settings.awq_magnitude, MAGNITUDES)
    if importance is not None and settings.channel_scales != "none":
        raise ValueError(
            "importance: expected none with channel scales, which change the weights it is of"
        )
    if importance is not None and settings.ranges != "weighted":
        raise ValueError(f"importance: expected none with ranges {settings.ranges!r}")


def check_sequences(samples: int, sequence_length: int) -> None:
    """Check the number of sequences taken of a text, and their number of tokens."""
    checks.integer("samples", samples, 1, 1 << 31)
    checks.integer("sequence_length", sequence_length, 2, 1 << 31)
