"""The same files, byte for byte: run after run, and at any number of threads."""

import os
import subprocess
import sys

import pytest
from models.tiny import write_tiny_checkpoint

SHORT = ["--samples", "4", "--sequence-length", "32"]


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


# K beyond 1024, up to which LAPACK gets one thread
WIDE = {"hidden_size": 1152, "intermediate_size": 1280, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["quantize"], WIDE),
        (["quantize", "--channel-scales", "awq", "--ranges", "weighted", "--bits", "3"], {}),
        (["collect"], {}),
    ],
    ids=["gptq", "awq", "collect"],
)
def test_files_are_the_same_at_any_number_of_threads(tmp_path, text, options, sizes):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16", **sizes)
    command, *rest = options
    arguments = [command, model, "--text", text, *SHORT, *rest]
    one, two = (files_at(threads, tmp_path / f"at-{threads}", *arguments) for threads in (1, 2))
    assert len(one) > 2
    assert one == two
    if not sizes:
        assert files_at(2, tmp_path / "again", *arguments) == two
