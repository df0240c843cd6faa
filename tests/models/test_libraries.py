"""Why docs/bets.md has readers of our own: when a test fails here, the library may do, and the bet ends."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file


def run(program, folder):
    """Run a program of Python in a process that it may end."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def file_of(path, header, data=b"\0" * 4):
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


CUT = """
import os, safetensors
file = safetensors.safe_open("cut.safetensors", "numpy")
os.truncate("cut.safetensors", 4096)
file.get_tensor("a").sum()
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere an open file cannot be cut")
def test_safetensors_ends_the_process_where_an_open_file_is_cut(tmp_path):
    save_file({"a": np.ones(1 << 20, np.float32)}, tmp_path / "cut.safetensors")
    assert run(CUT, tmp_path).returncode < 0  # by a signal


def test_safetensors_takes_the_last_of_two_tensors_of_one_name(tmp_path):
    first, last = ({"dtype": "F32", "shape": [1], "data_offsets": [0, size]} for size in (8, 4))
    header = f'{{"a": {json.dumps(first)}, "a": {json.dumps(last)}}}'
    with safe_open(file_of(tmp_path / "two.safetensors", header), "numpy") as file:
        assert list(file.keys()) == ["a"]


def test_safetensors_gives_no_bytes_of_types_that_numpy_lacks(tmp_path):
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}})
    with safe_open(file_of(tmp_path / "narrow.safetensors", header, b"\0"), "numpy") as file:
        assert file.get_slice("a").get_dtype() == "F4"
        with pytest.raises(AttributeError):
            file.get_tensor("a")


READ = """
import resource
import gguf
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 27),) * 2)
gguf.GGUFReader("counts.gguf")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's means")
def test_gguf_believes_the_counts_of_a_file(tmp_path):
    """An array of 2**40 numbers, in 49 bytes: memory runs out before the reader looks for them."""
    array = struct.pack("<IIQ", 9, 0, 1 << 40)
    metadata = struct.pack("<Q", 1) + b"a" + array
    (tmp_path / "counts.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + metadata)
    assert "MemoryError" in run(READ, tmp_path).stderr
