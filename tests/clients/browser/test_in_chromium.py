"""The page of a run in a headless Chromium: what it shows is what the run's JSON has."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.quantizer.preflight import in_units


def shown(page):
    """The page as Chromium has it once its scripts have run, without a network."""
    browser = shutil.which("chromium")
    assert browser, "chromium is not installed"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=9000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return html.unescape(found.stdout)


@pytest.fixture
def run(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model <b>", dtype="bfloat16")
    (tmp_path / "text.txt").write_text(TEXT * 20)
    command = ["quantize", model, "--text", tmp_path / "text.txt", "--samples", 4]
    command += ["--sequence-length", 32, "--group-size", 64, "--output", tmp_path / "out"]
    assert main([*map(str, command), "--report", str(tmp_path / "run.json")]) == 0
    return tmp_path / "run.json"


def test_the_page_shows_what_the_json_has(tmp_path, run):
    page = tmp_path / "run.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    report, text = json.loads(run.read_text()), shown(page)
    for name, values in {
        "sizes": [f"{report['bits_a_weight']:.3f}", in_units(report["output_bytes"]), "14"],
        "loss": [f"{report['proofs'][0]['evaluation'][name]:.4f}" for name in ("loss", "kl")],
        "plan": [f"{seconds:.1f} s" for seconds in report["plan"]["seconds"].values()],
        "settings": ["layerwise", "64"],
    }.items():
        table = re.search(rf'<table id="{name}">(.*?)</table>', text, re.DOTALL)[1]
        cells = re.findall(r"<td>(.*?)</td>", table)
        assert set(values) <= set(cells), name
    assert report["warnings"][0] in text
    assert f"<h1>{report['model']}</h1>" in text  # unescaped here; no element of its own
    labels = re.findall(r'class="ytick"[^>]*>.*?<text[^>]*>(.*?)</text>', text)
    assert {"self_attn.q_proj", "mlp.down_proj", "quantizing", "proving"} <= set(labels)
    assert text.count('class="main-svg"') >= 3


def test_the_page_asks_for_nothing_elsewhere(tmp_path, run):
    page = tmp_path / "run.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    found = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]*)"', page.read_text())
    assert found == []
