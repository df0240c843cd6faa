"""A run's report as one HTML page that needs no network: tables, and charts by plotly (extra `page`)."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from numbacalib.formats.durable import write_whole
from numbacalib.quantizer.preflight import in_units
from numbacalib.runtime.extras import extra

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left; }
td + td { text-align: right; }
.warning { background: #fff3cd; padding: .3em .8em; }
"""


def write_page(run: str | Path, page: str | Path) -> None:
    """Make a page of what ``--report`` wrote.

    Parameters
    ----------
    run : path
        The JSON of a `RunReport`.
    page : path
        The HTML file to write.

    Raises
    ------
    ValueError
        If it is no such JSON.
    OSError
        If a file cannot be read or written.
    ModuleNotFoundError
        If plotly is not installed.
    """
    file = Path(run)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        text = _page(report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected the JSON that --report writes ({type(error).__name__}: {error})"
        ) from None
    write_whole(Path(page), lambda partial: partial.write_text(text, encoding="utf-8"))


def _page(report: Mapping[str, Any]) -> str:
    parts = [
        f"<h1>{html.escape(report['model'])}</h1>",
        f"<p>quantized by numbacalib {html.escape(report['version'])} on {html.escape(report['device'])}, "
        f"to {html.escape(', '.join(report['formats']))} in {html.escape(report['output'])}</p>",
        *(f'<p class="warning">{html.escape(text)}</p>' for text in report["warnings"]),
        _table("sizes", _sizes(report)),
        _table("loss", _losses(report)),
        _table("plan", _plan(report), ("", "planned", "taken")),
        *_charts(report),
        _table("settings", sorted(report["settings"].items())),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(report['model'])}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _sizes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("bits a weight", f"{report['bits_a_weight']:.3f}"),
        ("layers", str(len(report["layers"]))),
        ("model", in_units(report["original_bytes"])),
        ("output", in_units(report["output_bytes"])),
    ]


def _losses(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the findings on the held-out text; none where there was none."""
    found = report["proofs"][0]["evaluation"]
    if found is None:
        return []
    names = {
        "loss": "loss, nats a token",
        "original_loss": "loss of the original",
        "kl": "KL to the original",
    }
    rows = [(text, f"{found[name]:.4f}") for name, text in names.items() if found[name] is not None]
    return [*rows, ("tokens", str(found["tokens"]))]


def _plan(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    plan, taken = report["plan"], report["seconds"]
    rows = [
        (name, f"{seconds:.1f} s", f"{taken[name]:.1f} s")
        for name, seconds in plan["seconds"].items()
    ]
    rows.append(("memory", in_units(plan["peak_bytes"]), in_units(report["peak_bytes"])))
    rows.append(("output", in_units(plan["output_bytes"]), in_units(report["output_bytes"])))
    return rows


def _table(name: str, rows: Iterable[Sequence[Any]], header: Sequence[str] = ()) -> str:
    cells = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    if not cells:
        return ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    head = f"<tr>{top}</tr>" if header else ""
    return f'<h2>{name}</h2>\n<table id="{name}">{head}{"".join(cells)}</table>'


def _charts(report: Mapping[str, Any]) -> list[str]:
    """Charts in their order, the first with plotly's script, which all need."""
    with extra("page"):
        import plotly.graph_objects as go
        from plotly.io import to_html

    figures = {
        "layers": _heat_map(report["layers"], go),
        "clipped": go.Figure(
            go.Histogram(x=[100 * (layer["clipped"] or 0) for layer in report["layers"]]),
            {"title": "share of weights past the ends of their grids, % of a layer"},
        ),
        "time": go.Figure(
            go.Bar(x=list(report["seconds"].values()), y=list(report["seconds"]), orientation="h"),
            {"title": "time by phase, s"},
        ),
    }
    found = {name: figure for name, figure in figures.items() if figure is not None}
    return [
        to_html(figure, full_html=False, include_plotlyjs=not index, div_id=f"chart-{name}")
        for index, (name, figure) in enumerate(found.items())
    ]


def _heat_map(layers: Sequence[Mapping[str, Any]], go: Any) -> Any:
    """Loss over that of rounding to the nearest, by block and projection; of experts the median."""
    ratios: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        if layer["loss"] is not None and layer["rtn_loss"] and ".layers." in layer["name"]:
            _, _, block, *rest = layer["name"].split(".")
            kind = ".".join("*" if part.isdecimal() else part for part in rest)
            ratios.setdefault((kind, int(block)), []).append(layer["loss"] / layer["rtn_loss"])
    if not ratios:
        return None
    kinds = list(dict.fromkeys(kind for kind, _ in ratios))
    blocks = sorted({block for _, block in ratios})
    values = [
        [median(found) if (found := ratios.get((kind, block))) else None for block in blocks]
        for kind in kinds
    ]
    title = "loss over that of rounding to the nearest"
    return go.Figure(go.Heatmap(z=values, x=blocks, y=kinds), {"title": title})
