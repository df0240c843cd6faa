"""Checkpoints loaded by vLLM on the CPU, in an environment of its own: the Python of NUMBACALIB_VLLM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clients.tiny_llama import TOKENS, our_logits, write_quantized

BOUND = 3e-2
"""Of the spread of the logarithms: it computes in float16."""
CASES = [
    ("compressed-tensors", 4, 32, True),
    ("compressed-tensors", 4, None, True),
    ("compressed-tensors", 4, 32, False),
    ("gptq", 4, 32, True),
    ("awq", 4, 32, False),
]


def theirs(directory: Path) -> subprocess.CompletedProcess[str]:
    tokens, output = directory.parent / "tokens.npy", directory.parent / "logits.npy"
    np.save(tokens, TOKENS)
    script = Path(__file__).with_name("logits.py")
    command = [os.environ["NUMBACALIB_VLLM"], str(script), str(directory), str(tokens), str(output)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(("form", "bits", "size", "symmetric"), CASES)
def test_vllm_computes_what_our_weights_say(tmp_path, form, bits, size, symmetric):
    options = {"bits": bits, "group_size": size, "symmetric": symmetric}
    directory = write_quantized(tmp_path, form, **options)
    found = theirs(directory)
    assert found.returncode == 0, found.stderr[-3000:]
    logits = our_logits(directory)[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    actual = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=BOUND * np.ptp(expected))


@pytest.mark.parametrize(
    ("form", "bits", "symmetric"),
    [("compressed-tensors", 8, True), ("gptq", 8, True), ("gptq_v2", 4, False)],
)
def test_what_it_does_not_load(tmp_path, form, bits, symmetric):
    """If this fails, it has come to load it: say so in docs/formats.md."""
    options = {"bits": bits, "group_size": 32, "symmetric": symmetric}
    found = theirs(write_quantized(tmp_path, form, **options))
    assert found.returncode != 0
    assert "vllm" in found.stderr
