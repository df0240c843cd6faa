"""Scripts of the folder benchmarks load without a GPU, and say what they take; lint checks their types."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COMPARED = {
    *("attention_gpu", "awq_gpu", "fisher_gpu", "gptq_gpu", "hessian_gpu"),
    *("cpu", "onnx_models", "proxy", "trained"),
}
"""Scripts that import torch or ONNX Runtime at once, which the tests' environment lacks."""
SCRIPTS = {
    file.stem for file in BENCHMARKS.glob("*.py") if "\nif __name__ ==" in file.read_text("utf-8")
}


def test_scripts_of_comparisons_exist():
    assert COMPARED < SCRIPTS


@pytest.mark.parametrize("script", sorted(SCRIPTS - COMPARED))
def test_script_answers_help(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script}.py")
