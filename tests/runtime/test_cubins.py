"""Compiled GPU kernels on disk: what tells them apart, and that each is made once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, types

from numbacalib.runtime import kernel_files
from numbacalib.runtime.identity import code_size, describe

STEP = 1


def described(value):
    lines = []
    return repr(describe(value, lines)), lines


def kernel_of(step, inner=None, **options):
    """Build a function as kernels are built: of what it gets from around it."""

    @njit(**options)
    def kernel(x):
        for i in range(len(x)):
            x[i] += step if inner is None else inner(step)

    return kernel


def doubler(factor):
    @njit
    def double(x):
        return x * factor

    return double


def test_kernels_that_call_more_are_larger():
    sizes = [code_size(kernel_of(1)), code_size(kernel_of(1, doubler(2)))]
    assert 0 < sizes[0] < sizes[1]
    assert code_size(recursive) == len(recursive.__code__.co_code)


def with_global(x):
    return x + STEP


def recursive(n):
    return recursive(n - 1) if n else 0


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (1, "1"),
        (1, None),
        (np.float32(1), np.float64(1)),
        (np.float32(1), 1.0),
        (0.0, -0.0),
        (np.float32, np.float64),
        (types.float32, types.float64),
        (np.dtype(np.int16), np.dtype(np.uint16)),
        ((1, 2), (2, 1)),
        ((1, (2, 3)), ((1, 2), 3)),
        ({"a": 1}, {"b": 1}),
        (np.zeros(2), np.zeros((1, 2))),
        (np.sqrt, np.exp),
        (max, min),
        (np, types),
    ],
)
def test_kernels_with_other_values_are_told_apart(left, right):
    assert described(left) == described(left)
    assert described(left) != described(right)
    assert described(kernel_of(left)) == described(kernel_of(left))
    assert described(kernel_of(left)) != described(kernel_of(right))


def test_kernels_with_other_functions_and_options_are_told_apart():
    assert described(kernel_of(1, doubler(2))) == described(kernel_of(1, doubler(2)))
    assert described(kernel_of(1, doubler(2))) != described(kernel_of(1, doubler(3)))
    assert described(kernel_of(1)) != described(kernel_of(1, boundscheck=True))
    assert described(kernel_of(1, recursive)) != described(kernel_of(1, doubler))


def test_a_changed_constant_of_a_module_is_seen(monkeypatch):
    before = described(kernel_of(1, with_global))
    monkeypatch.setitem(globals(), "STEP", 2)
    assert described(kernel_of(1, with_global)) != before


def test_functions_of_one_name_have_lines():
    first = lambda x: x + 1  # noqa: E731
    second = lambda x: x + 2  # noqa: E731
    (left, left_lines), (right, right_lines) = described(first), described(second)
    assert left == right
    assert left_lines != right_lines


def test_what_cannot_be_told_is_refused():
    with pytest.raises(
        TypeError, match=r"expected a constant, type or function in a kernel, got <ob"
    ):
        described(kernel_of(object()))


def test_a_kernel_is_the_same_in_another_process():
    program = (
        "from runtime.test_cubins import *\n"
        "print(described(kernel_of((np.float32(1), types.float32, {'b': 1, 'a': 2}), doubler(2))))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert "doubler" in said.pop()


class Compiler:
    """Stands for one that takes a while, and counts what it made."""

    def __init__(self):
        self.made = []

    def __call__(self, kernel):
        name, identity = "kernel.cubin", described(kernel)[0].encode()

        def make():
            self.made.append(identity)
            return identity[::-1]

        assert kernel_files.kept(name, identity, make) == identity[::-1]
        return len(self.made)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(kernel_files.tempfile, "tempdir", None)
    kernel_files._warn_once.cache_clear()
    return next(kernel_files.folders())


def test_a_kernel_is_made_once_by_many_threads(folder):
    compiler = Compiler()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(compiler, [kernel_of(1) for _ in range(40)])) == {1}
    assert [file.name for file in folder.iterdir()] == ["kernel.cubin"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "absent"])
def test_a_damaged_kernel_is_made_again(folder, damage):
    compiler = Compiler()
    compiler(kernel_of(1))
    (file,) = folder.iterdir()
    contents = bytearray(file.read_bytes())
    contents[-1] ^= damage == "flipped"
    file.unlink()
    if damage != "absent":
        file.write_bytes(contents[: {"empty": 0, "cut": 100}.get(damage)])
    assert [compiler(kernel_of(1)), compiler(kernel_of(1))] == [2, 2]


def test_a_kernel_of_other_values_replaces_what_has_its_name(folder):
    compiler = Compiler()
    assert [compiler(kernel_of(n)) for n in (1, 2, 2, 1)] == [1, 2, 2, 3]
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_costs_only_time(folder, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    compiler = Compiler()
    assert [compiler(kernel_of(1)), compiler(kernel_of(1))] == [1, 2]
    (message,) = caplog.messages
    assert "every process compiles its own" in message
