"""The package as a user meets it: its names, its tour, and what is compiled ahead."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import numbacalib

ROOT = Path(__file__).parent.parent.parent

ROOMS = """
import json, sys
import numbacalib
rooms = ["methods", "quantizer", "statistics"]
early = [room for room in rooms if f"numbacalib.{room}" in sys.modules]
listed = [room for room in rooms if room in dir(numbacalib)]
made = [numbacalib.methods.gptq, numbacalib.statistics.InputStatistics, numbacalib.quantizer.quantize]
print(json.dumps([early, listed, [thing.__name__ for thing in made]]))
"""

WARM = """
import json, sys
from pathlib import Path
import ml_dtypes, numpy as np
from models.tiny import write_tiny_checkpoint
from numbacalib.cli import main
from numbacalib.runtime.jit import _announcement

def forms():
    kernels = _announcement.kernels
    return {(kernel.py_func.__name__, str(form)) for kernel in kernels for form in kernel.signatures}

folder = Path(sys.argv[1])
assert main(["warm-up", "--dtypes", "float32"]) == 0
ahead = forms()
write_tiny_checkpoint(folder / "model")
(folder / "text").write_text("What a quiet evening it was, and how long the shadows were. " * 40)
quantize = ["quantize", str(folder / "model"), "--text", str(folder / "text"), "--group-size", "16"]
quantize += ["--samples", "4", "--sequence-length", "32"]
for number, options in enumerate(([], ["--symmetric", "--ranges", "mse"], ["--channel-scales", "awq"])):
    assert main([*quantize, "--output", str(folder / str(number)), *options]) == 0
print(json.dumps([len(ahead), sorted(forms() - ahead)]))
"""


def run(code, *arguments):
    """Run code in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_fresh_processes_see_the_package_that_tests_see(tmp_path, monkeypatch):
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        assert (
            run("import numbacalib; print(numbacalib.__file__)").stdout.strip()
            == numbacalib.__file__
        )


def test_the_version_is_said_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", numbacalib.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "numbacalib/__init__.py"


def test_rooms_are_imported_when_they_are_used():
    done = run(ROOMS)
    rooms = ["methods", "quantizer", "statistics"]
    assert json.loads(done.stdout) == [[], rooms, ["gptq", "InputStatistics", "quantize"]], (
        done.stderr
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'numbacalib' has no attribute 'gptqq'"):
        numbacalib.gptqq  # noqa: B018


def test_the_tour_is_true():
    failed, tried = doctest.testmod(numbacalib)
    assert not failed
    assert tried > 8


def test_what_was_warmed_up_is_not_compiled_again(tmp_path):
    done = run(WARM, tmp_path)
    assert done.returncode == 0, done.stderr
    ahead, later = json.loads(done.stdout.splitlines()[-1])
    assert ahead > 20
    assert later == []
    calls = re.findall(r"\[(\d+)/(\d+)\] .+, float32: \d+\.\d s", done.stderr)
    assert [int(number) for number, _ in calls] == list(range(1, int(calls[0][1]) + 1))
