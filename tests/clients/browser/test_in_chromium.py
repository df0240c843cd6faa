"""The page of a run in a headless Chromium: what it shows is what `report --json` says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from models.described import write_described_checkpoint
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.quantizer.preflight import in_units

SMALL = ["--samples", "4", "--sequence-length", "32", "--group-size", "64"]
DRAWN = """<script>
const found = {};
for (const chart of document.querySelectorAll(".js-plotly-plot"))
  found[chart.id] = chart._fullData.map(trace => ({
    x: Array.from(trace.x), y: Array.from(trace.y || []), base: Array.from(trace.base || []),
    z: Array.from(trace.z || [], row => Array.from(row)), name: trace.name}));
const text = document.createElement("pre");
text.id = "drawn";
text.textContent = JSON.stringify(found);
document.body.append(text);
</script>"""
"""Writes into the page what plotly has drawn."""


def shown(page):
    """The page as Chromium has it once its scripts have run, without a network."""
    browser = shutil.which("chromium")
    assert browser, "chromium is not installed"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=9000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return html.unescape(found.stdout)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def page_of(tmp_path, model, *options):
    """A page of a run, which says what it drew."""
    (tmp_path / "text.txt").write_text(TEXT * 20)
    command = ["quantize", model, "--text", tmp_path / "text.txt", *SMALL, *options]
    report, page = tmp_path / "run.json", tmp_path / "run.html"
    assert run(*command, "--output", tmp_path / "out", "--report", report) == 0
    assert run("report", report, "--output", page) == 0
    page.write_text(page.read_text().replace("</body>", f"{DRAWN}</body>"))
    return page


def as_json(tmp_path, capsys):
    capsys.readouterr()
    assert run("report", tmp_path / "run.json", "--json") == 0
    return json.loads(capsys.readouterr().out)


def cells(text, name):
    table = re.search(rf'<table id="{name}">(.*?)</table>', text, re.DOTALL)[1]
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows]


def formatted(value, unit):
    if unit == "bytes":
        return in_units(value)
    if unit == "s":
        return f"{value:.1f} s"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def test_the_page_shows_what_the_json_has(tmp_path, capsys):
    model = write_tiny_checkpoint(tmp_path / "model <b>", dtype="bfloat16")
    text = shown(page_of(tmp_path, model))
    found = as_json(tmp_path, capsys)
    assert set(found["tables"]) == {"sizes", "loss", "plan", "settings"}
    for name, rows in found["tables"].items():
        expected = [[row, *(formatted(each, unit) for each in own)] for row, own, unit in rows]
        assert cells(text, name) == expected
    assert {row[0] for row in found["tables"]["loss"]} >= {"perplexity", "KL to the original"}
    assert found["warnings"][0] in text
    assert f"<h1>{found['model']}</h1>" in text  # unescaped here; no element of its own
    drawn = json.loads(re.search(r'<pre id="drawn">(.*?)</pre>', text)[1])
    charts = found["charts"]
    assert set(drawn) == {f"chart-{name}" for name in charts if name != "experts"}
    (heat,) = drawn["chart-layers"]
    assert (heat["x"], heat["y"], heat["z"]) == tuple(charts["layers"].values())
    assert len(heat["y"]) == 7
    for name in ("weights", "scales"):
        histogram = charts[name]
        assert [trace["name"] for trace in drawn[f"chart-{name}"]] == list(histogram["counts"])
        for trace, counts in zip(drawn[f"chart-{name}"], histogram["counts"].values(), strict=True):
            assert trace["x"] == histogram["edges"][:-1]
            assert trace["y"] == pytest.approx([count / sum(counts) for count in counts])
    assert drawn["chart-clipped"][0]["x"] == pytest.approx(charts["clipped"])
    (bars,) = drawn["chart-time"]
    assert [bars["y"], bars["base"], bars["x"]] == list(charts["time"].values())
    labels = re.findall(r'class="ytick"[^>]*>.*?<text[^>]*>(.*?)</text>', text)
    assert {"self_attn.q_proj", "mlp.down_proj", "quantizing", "proving"} <= set(labels)


def test_experts_are_shown_with_their_tokens(tmp_path, capsys):
    model = write_described_checkpoint(tmp_path / "model", "qwen2_moe", dtype="bfloat16")
    text = shown(
        page_of(tmp_path, model, "--group-size", 8, "--method", "rtn", "--ranges", "weighted")
    )
    experts = as_json(tmp_path, capsys)["charts"]["experts"]
    drawn = json.loads(re.search(r'<pre id="drawn">(.*?)</pre>', text)[1])
    (heat,) = drawn["chart-experts"]
    assert (heat["y"], heat["x"], heat["z"]) == tuple(experts.values())
    assert all(sum(row) > 0 for row in heat["z"])


def test_the_page_asks_for_nothing_elsewhere(tmp_path):
    page = page_of(tmp_path, write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16"))
    found = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]*)"', page.read_text())
    assert found == []
