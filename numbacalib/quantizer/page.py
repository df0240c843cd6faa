"""A run's report as one HTML page that needs no network: tables, and charts by plotly (extra `page`)."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numbacalib.formats.durable import write_whole
from numbacalib.quantizer.preflight import in_units
from numbacalib.quantizer.shown import BYTES, SECONDS, Row, shown
from numbacalib.runtime.extras import extra

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left; }
td + td { text-align: right; }
.warning { background: #fff3cd; padding: .3em .8em; }
"""
_HEADERS = {"plan": ("", "planned", "taken")}


def read_report(run: str | Path) -> dict[str, Any]:
    """Read the values that a page shows from the file of ``--report``.

    Parameters
    ----------
    run : path
        The JSON of a `RunReport`.

    Returns
    -------
    dict
        As from `numbacalib.quantizer.shown.shown`.

    Raises
    ------
    ValueError
        If it is not such JSON.
    OSError
        If it cannot be read.
    """
    file = Path(run)
    if file.is_dir():
        raise IsADirectoryError(f"{file}: expected the JSON that --report writes, got a directory")
    try:
        return shown(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{file}: expected the JSON that --report writes ({type(error).__name__}: {error})"
        ) from None


def write_page(found: Mapping[str, Any], page: str | Path) -> None:
    """Write the result of `read_report` as a page.

    Raises
    ------
    OSError
        If the file cannot be written.
    ModuleNotFoundError
        If plotly is not installed.
    """
    text = _page(found)
    write_whole(Path(page), lambda partial: partial.write_text(text, encoding="utf-8"))


def _page(found: Mapping[str, Any]) -> str:
    tables = {name: _table(name, rows) for name, rows in found["tables"].items()}
    parts = [
        f"<h1>{html.escape(found['model'])}</h1>",
        f"<p>quantized by numbacalib {html.escape(found['version'])} on {html.escape(found['device'])}, "
        f"to {html.escape(', '.join(found['formats']))} in {html.escape(found['output'])}</p>",
        *(f'<p class="warning">{html.escape(text)}</p>' for text in found["warnings"]),
        *(tables[name] for name in ("sizes", "loss", "plan")),
        *_charts(found["charts"]),
        tables["settings"],
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(found['model'])}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(name: str, rows: Sequence[Row]) -> str:
    cells = [
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>" for cell in (row.name, *map(_text(row), row.values))
        )
        + "</tr>"
        for row in rows
    ]
    if not cells:
        return ""
    top = "".join(f"<th>{cell}</th>" for cell in _HEADERS.get(name, ()))
    head = f"<tr>{top}</tr>" if top else ""
    return f'<h2>{name}</h2>\n<table id="{name}">{head}{"".join(cells)}</table>'


def _text(row: Row) -> Any:
    """Function that formats a row's values."""
    if row.unit == BYTES:
        return in_units
    if row.unit == SECONDS:
        return "{:.1f} s".format
    return lambda value: f"{value:.4f}" if isinstance(value, float) else str(value)


def _charts(found: Mapping[str, Any]) -> list[str]:
    """Charts in their order, the first with plotly's script, which all need."""
    with extra("page"):
        import plotly.graph_objects as go
        from plotly.io import to_html

    layers, experts, time = found["layers"], found["experts"], found["time"]
    figures = {}
    if layers["kinds"]:
        traces = go.Heatmap(z=layers["ratios"], x=layers["blocks"], y=layers["kinds"])
        figures["layers"] = _figure(
            go, traces, "loss over that of rounding to the nearest", "block"
        )
    weights, scales = (_histogram(go, found[name]) for name in ("weights", "scales"))
    figures["weights"] = _figure(
        go, weights, "quantized weights", "over the root mean square of their layer's"
    )
    figures["scales"] = _figure(go, scales, "scales", "")
    figures["scales"].update_xaxes(type="log")
    clipped = go.Histogram(x=found["clipped"])
    figures["clipped"] = _figure(
        go, clipped, "share of weights past the ends of their grids", "% of a layer's"
    )
    if experts["experts"]:
        traces = go.Heatmap(z=experts["tokens"], x=experts["experts"], y=experts["blocks"])
        figures["experts"] = _figure(go, traces, "tokens of the experts of each block", "expert")
    traces = go.Bar(base=time["begins"], x=time["seconds"], y=time["phases"], orientation="h")
    figures["time"] = _figure(go, traces, "time line", "s")
    figures["time"].update_yaxes(autorange="reversed")
    return [
        to_html(figure, full_html=False, include_plotlyjs=not index, div_id=f"chart-{name}")
        for index, (name, figure) in enumerate(figures.items())
    ]


def _figure(go: Any, traces: Any, title: str, axis: str) -> Any:
    return go.Figure(traces, {"title": title, "xaxis": {"title": {"text": axis}}})


def _histogram(go: Any, found: Mapping[str, Any]) -> list[Any]:
    """Shares of each kind's values that are in each bin, as steps."""
    edges = found["edges"]
    return [
        go.Scatter(
            x=edges[:-1],
            y=[count / (sum(counts) or 1) for count in counts],
            name=kind,
            line={"shape": "hv"},
        )
        for kind, counts in found["counts"].items()
    ]
