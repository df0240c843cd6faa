"""Values that the page of a run shows, from the JSON that ``--report`` writes.

Tables are rows of a name, one value or two (planned and taken) and a unit; charts are the arrays to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from numbacalib.quantizer.distributions import kind_of
from numbacalib.quantizer.evaluation import Evaluation

BYTES, SECONDS = "bytes", "s"


class Row(NamedTuple):
    """A row of a table."""

    name: str
    values: list[Any]
    unit: str = ""


def shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that a page shows of a report, as values for JSON."""
    return {
        **{key: report[key] for key in ("model", "version", "device", "formats", "output")},
        "warnings": report["warnings"],
        "tables": {
            "sizes": _sizes(report),
            "loss": _losses(report),
            "plan": _plan(report),
            "settings": [Row(name, [value]) for name, value in sorted(report["settings"].items())],
        },
        "charts": {
            "layers": _layers(report["layers"]),
            "weights": report["weights"],
            "scales": report["scales"],
            "clipped": [100 * (layer["clipped"] or 0) for layer in report["layers"]],
            "experts": _experts(report["layers"]),
            "time": _times(report),
        },
    }


def _sizes(report: Mapping[str, Any]) -> list[Row]:
    return [
        Row("bits a weight", [report["bits_a_weight"]]),
        Row("layers", [len(report["layers"])]),
        Row("model", [report["original_bytes"]], BYTES),
        Row("output", [report["output_bytes"]], BYTES),
    ]


def _losses(report: Mapping[str, Any]) -> list[Row]:
    """Return the findings on the held-out text; none without one."""
    evaluation = report["proofs"][0]["evaluation"]
    if evaluation is None:
        return []
    found = evaluation | {"perplexity": Evaluation(**evaluation).perplexity}
    names = {
        "loss": "loss, nats a token",
        "original_loss": "loss of the original",
        "perplexity": "perplexity",
        "kl": "KL to the original",
        "kl_error": "standard error of the KL",
        "tokens": "tokens",
    }
    return [Row(text, [found[name]]) for name, text in names.items() if found[name] is not None]


def _plan(report: Mapping[str, Any]) -> list[Row]:
    """Rows of what was planned and what was taken."""
    plan, taken = report["plan"], report["seconds"]
    rows = [Row(name, [seconds, taken[name]], SECONDS) for name, seconds in plan["seconds"].items()]
    for name, key in (("memory", "peak_bytes"), ("memory of the device", "device_bytes")):
        if report[key]:
            rows.append(Row(name, [plan[key], report[key]], BYTES))
    rows.append(Row("output", [plan["output_bytes"], report["output_bytes"]], BYTES))
    return rows


def _layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Losses divided by those of round-to-nearest, by kind and block; the median for experts."""
    ratios: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        if layer["loss"] is not None and layer["rtn_loss"] and ".layers." in layer["name"]:
            at = kind_of(layer["name"]), _block_of(layer)
            ratios.setdefault(at, []).append(layer["loss"] / layer["rtn_loss"])
    kinds = list(dict.fromkeys(kind for kind, _ in ratios))
    blocks = sorted({block for _, block in ratios})
    values = [
        [median(found) if (found := ratios.get((kind, block))) else None for block in blocks]
        for kind in kinds
    ]
    return {"blocks": blocks, "kinds": kinds, "ratios": values}


def _experts(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens that the experts of each block were calibrated on; empty without experts."""
    tokens: dict[int, dict[int, int]] = {}
    for layer in layers:
        numbers = [part for part in layer["name"].split(".")[3:] if part.isdecimal()]
        if numbers and layer["tokens"] is not None:
            tokens.setdefault(_block_of(layer), {})[int(numbers[0])] = layer["tokens"]
    experts = sorted({expert for own in tokens.values() for expert in own})
    values = [[own.get(expert) for expert in experts] for own in tokens.values()]
    return {"blocks": list(tokens), "experts": experts, "tokens": values}


def _times(report: Mapping[str, Any]) -> dict[str, Any]:
    phases = list(report["seconds"])
    return {
        "phases": phases,
        "begins": [report["begins"][phase] for phase in phases],
        "seconds": [report["seconds"][phase] for phase in phases],
    }


def _block_of(layer: Mapping[str, Any]) -> int:
    return int(layer["name"].split(".")[2])
