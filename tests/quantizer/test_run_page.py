"""The page of a run: refusals, and what is escaped."""

from __future__ import annotations

import json

import pytest
from models.tiny import write_tiny_checkpoint

import numbacalib
from numbacalib.cli import main


def test_a_run_without_a_text_has_a_page_too(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "<i>model")
    report = numbacalib.quantize(model, tmp_path / "out", method="rtn", group_size=32)
    report.save(tmp_path / "run.json")
    assert main(["report", str(tmp_path / "run.json"), "--output", str(tmp_path / "run.html")]) == 0
    text = (tmp_path / "run.html").read_text()
    assert "<i>" not in text.partition("<script")[0]
    assert "&lt;i&gt;model" in text
    assert 'id="chart-clipped"' in text
    assert 'id="chart-layers"' not in text  # no losses without inputs
    assert 'id="loss"' not in text


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"model": 3})])
def test_other_files_are_refused(tmp_path, capsys, content):
    (tmp_path / "run.json").write_text(content)
    page = tmp_path / "run.html"
    assert main(["report", str(tmp_path / "run.json"), "--output", str(page)]) == 2
    assert "run.json: expected the JSON that --report writes" in capsys.readouterr().err
    assert not page.exists()


def test_an_output_is_no_report(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "run.html")]) == 2
    expected = f"{tmp_path}: expected the JSON that --report writes, got a directory"
    assert expected in capsys.readouterr().err
