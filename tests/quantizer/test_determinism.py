"""The same files, byte for byte: run after run, and from saved statistics at any number of threads.

A text's way through the model is BLAS's, whose sums depend on its number of threads.
"""

import os
import subprocess
import sys

import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.cli import main

SHORT = ["--samples", "4", "--sequence-length", "32"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 20, encoding="utf-8")
    return file


def files_at(threads, output, *arguments):
    """Run a command in a process of so many threads, and return its output by file name."""
    variables = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads))
    command = [sys.executable, "-m", "numbacalib.cli", *arguments, "--output", output]
    result = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return {file.name: file.read_bytes() for file in sorted(output.iterdir())}


@pytest.mark.parametrize("command", ["quantize", "collect"])
def test_a_run_repeats_itself(tmp_path, text, command):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    arguments = [command, model, "--text", text, *SHORT]
    first, second = (files_at(2, tmp_path / name, *arguments) for name in ("first", "second"))
    assert len(first) > 2
    assert first == second


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        # K beyond 1024, up to which LAPACK gets one thread
        ([], {"hidden_size": 1152, "intermediate_size": 1280, "num_hidden_layers": 1}),
        (["--channel-scales", "awq", "--ranges", "weighted", "--bits", "3"], {}),
    ],
    ids=["gptq", "awq"],
)
def test_threads_do_not_show_in_what_is_made_of_statistics(tmp_path, text, options, sizes):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", **sizes)
    saved = tmp_path / "statistics"
    collect = ["collect", model, "--text", text, *SHORT, "--output", saved]
    assert main([str(argument) for argument in collect]) == 0
    arguments = ["quantize", model, "--statistics", saved, *options]
    one, two = (files_at(threads, tmp_path / f"at-{threads}", *arguments) for threads in (1, 2))
    assert one == two
