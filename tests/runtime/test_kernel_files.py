"""Compiled kernels on disk: what is damaged or cannot be written costs time and nothing else."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from numbacalib.runtime import kernel_files
from numbacalib.runtime.jit import kernel

ROOT = Path(__file__).parent.parent.parent
TINY = """
from numba import prange
from numbacalib.runtime.jit import kernel

@kernel
def add_one(x):
    for i in prange(len(x)):
        x[i] += 1
"""
CALL = """
import json, sys
import numpy as np
import numbacalib
from tiny import add_one
x = np.zeros(3)
add_one(x)
print(json.dumps(x.tolist()))
"""
NAME, IDENTITY, PAYLOAD = "kernel.nbc", b"what it depends on", bytes(range(40))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where kernels are kept, as NUMBA_CACHE_DIR names it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(kernel_files.tempfile, "tempdir", None)
    kernel_files._warn_once.cache_clear()
    return next(kernel_files.folders())


@pytest.fixture
def tiny(tmp_path):
    """A module with a kernel, as a fresh process sees it at each call."""
    file = tmp_path / "tiny.py"
    file.write_text(TINY)

    def add_one():
        spec = importlib.util.spec_from_file_location("tiny", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        x = np.zeros(3)
        module.add_one(x)
        np.testing.assert_array_equal(x, 1)
        return sum(module.add_one._compiled.stats.cache_hits.values())

    return add_one


def call_in_a_process(tmp_path, before="", **environment):
    """Call the tiny kernel in a fresh process; return what it left on standard error.

    A copy of the package in the test's folder goes before the installed one.
    """
    (tmp_path / "tiny.py").write_text(TINY)
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    variables = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", before + CALL],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 1, 1]
    return done.stderr


def test_a_kernel_is_compiled_once(folder, tiny):
    assert tiny() == 0
    (file,) = folder.iterdir()
    contents = file.read_bytes()
    assert tiny() == 1
    assert [file] == list(folder.iterdir())
    assert file.read_bytes() == contents


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "absent", "a folder"])
def test_a_damaged_kernel_is_compiled_again_and_replaced(folder, tiny, damage):
    tiny()
    (file,) = folder.iterdir()
    contents = bytearray(file.read_bytes())
    if damage == "flipped":
        contents[len(contents) // 2] ^= 1
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "absent":
        file.write_bytes(contents[: {"empty": 0, "cut": 1000}.get(damage)])
    assert tiny() == 0
    assert tiny() == 1


def test_every_flipped_bit_and_every_cut_is_seen(folder):
    kernel_files.store(NAME, IDENTITY, PAYLOAD)
    whole = (folder / NAME).read_bytes()
    assert kernel_files.load(NAME, IDENTITY) == PAYLOAD
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / NAME).write_bytes(flipped)
        assert kernel_files.load(NAME, IDENTITY) is None, bit
    for length in range(len(whole)):
        (folder / NAME).write_bytes(whole[:length])
        assert kernel_files.load(NAME, IDENTITY) is None, length


def test_a_stale_kernel_is_replaced(folder):
    kernel_files.store(NAME, IDENTITY, PAYLOAD)
    assert kernel_files.load(NAME, b"newer sources") is None
    kernel_files.store(NAME, b"newer sources", b"newer")
    assert kernel_files.load(NAME, b"newer sources") == b"newer"
    assert [file.name for file in folder.iterdir()] == [NAME]


def test_many_writers_leave_one_whole_file(folder):
    payloads = [bytes([n]) * 100_000 for n in range(8)]
    kernel_files.store(NAME, IDENTITY, payloads[0])

    def write(payload):
        for _ in range(20):
            kernel_files.store(NAME, IDENTITY, payload)
            assert kernel_files.load(NAME, IDENTITY) in payloads

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, payloads))
    assert [file.name for file in folder.iterdir()] == [NAME]


MAKE = """
import sys, time
from numbacalib.runtime import kernel_files
def make():
    print("made", flush=True)
    time.sleep(float(sys.argv[1]))
    return b"payload"
print(kernel_files.kept("kernel.nbc", b"identity", make))
"""


@pytest.fixture
def maker(tmp_path):
    """Start processes that need a file which takes so long to make; none outlives the test."""
    started = []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", MAKE, str(seconds)],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_of_several_processes_one_makes_a_file(tmp_path, maker):
    first = maker(3)
    assert first.stdout.readline() == "made\n"
    others = [maker(0) for _ in range(2)]
    found = [process.communicate(timeout=300)[0] for process in (first, *others)]
    assert found == ["b'payload'\n"] * 3
    assert not list(tmp_path.rglob("*.lock"))


def test_what_another_process_makes_is_left_to_it(tmp_path, monkeypatch, maker):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    first = maker(3)
    assert first.stdout.readline() == "made\n"
    kernel_files.make_unless_begun("kernel.nbc", b"identity", pytest.fail)
    assert first.poll() is None
    assert first.communicate(timeout=300)[0] == "b'payload'\n"
    assert kernel_files.load("kernel.nbc", b"identity") == b"payload"
    kernel_files.make_unless_begun("kernel.nbc", b"identity", pytest.fail)
    kernel_files.make_unless_begun("other.nbc", b"identity", lambda: b"other")
    assert kernel_files.load("other.nbc", b"identity") == b"other"
    assert not list(tmp_path.rglob("*.lock"))


def test_one_that_makes_no_end_is_not_waited_for(tmp_path, monkeypatch, maker):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_files, "PATIENCE", 0.1)
    first = maker(300)
    assert first.stdout.readline() == "made\n"
    assert kernel_files.kept("kernel.nbc", b"identity", lambda: b"payload") == b"payload"
    assert first.poll() is None
    assert len(list(tmp_path.rglob("*.lock"))) == 1  # it is the other's still


def test_one_that_is_killed_is_not_waited_for(maker):
    first = maker(300)
    assert first.stdout.readline() == "made\n"
    other = maker(0)
    first.kill()
    first.communicate()
    assert other.communicate(timeout=300)[0] == "made\nb'payload'\n"


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_folder_that_takes_nothing_is_passed_over(folder, monkeypatch, caplog, reason):
    write = Path.write_bytes

    def fail(path, contents):
        if folder in path.parents:
            write(path, contents[:10])
            raise OSError(reason, os.strerror(reason))
        return write(path, contents)

    monkeypatch.setattr(Path, "write_bytes", fail)
    kernel_files.store(NAME, IDENTITY, PAYLOAD)
    kernel_files.store("other", IDENTITY, PAYLOAD)
    assert list(folder.iterdir()) == []
    assert kernel_files.load(NAME, IDENTITY) == PAYLOAD
    (message,) = caplog.messages
    private = kernel_files._private_folder(create=False)
    assert str(folder) in message
    assert str(private) in message
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_private_folder_that_others_could_have_written_to_is_not_read(folder, tmp_path):
    private = kernel_files._private_folder(create=True)
    assert private.parent == tmp_path
    private.chmod(0o770)
    assert kernel_files._private_folder(create=True) is None
    private.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    private.symlink_to(tmp_path / "elsewhere")
    assert kernel_files._private_folder(create=True) is None


@pytest.mark.parametrize("home", ["~/.cache", "/nonexistent/.cache"])
def test_a_home_that_is_not_there_is_not_made(monkeypatch, home):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: home)
    assert list(kernel_files._usual_folders()) == [kernel_files.PACKAGE / "__pycache__"]


def test_a_start_where_nothing_can_be_written(tmp_path):
    """As in a container of another user: one warning, and later processes need not compile."""
    package = tmp_path / "numbacalib"
    shutil.copytree(ROOT / "numbacalib", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__pycache__").write_text("in the way")
    unwritable = {"HOME": "/dev/null", "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None}
    errors = call_in_a_process(tmp_path, PYTHONDONTWRITEBYTECODE="1", **unwritable)
    (warning,) = [
        line for line in errors.splitlines() if "compiled kernels cannot be written" in line
    ]
    (private,) = tmp_path.glob("numbacalib-*")
    assert str(private) in warning
    assert str(package) in warning
    again = call_in_a_process(tmp_path, PYTHONDONTWRITEBYTECODE="1", **unwritable)
    assert "compiled kernels cannot be written" not in again


def test_a_full_disk_costs_only_time(tmp_path):
    """A limit of files' sizes ends each write in the middle, as a full disk does."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    errors = call_in_a_process(
        tmp_path,
        before=before,
        NUMBA_CACHE_DIR=str(tmp_path / "kernels"),
        PYTHONDONTWRITEBYTECODE="1",
    )
    (warning,) = [
        line for line in errors.splitlines() if "compiled kernels cannot be written" in line
    ]
    assert "every process compiles its own" in warning
    assert not [file for file in tmp_path.rglob("*.nbc*") if file.is_file()]


def test_a_numba_with_other_names_keeps_kernels_itself(tmp_path):
    before = "import numba.core.caching; del numba.core.caching.CompileResultCacheImpl\n"
    call_in_a_process(tmp_path, before=before, NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
    assert list((tmp_path / "kernels").rglob("*.nbi"))


def test_a_kernel_that_its_source_does_not_tell_is_refused():
    constant = 3

    @kernel
    def closure(x):
        x[0] = constant

    with pytest.raises(TypeError, match=r"closure: expected a kernel without a closure"):
        closure(np.zeros(1))


def test_a_user_is_told_once_that_kernels_compile(tmp_path):
    before = "from numbacalib.runtime import jit; jit.PATIENCE = 0.01\n"
    kernels = str(tmp_path / "kernels")
    compiling = (
        before + "import numpy, numbacalib; numbacalib.awq_channel_scores(*numpy.ones((2, 2, 2)))\n"
    )
    said = call_in_a_process(tmp_path, before=compiling, NUMBA_CACHE_DIR=kernels)
    assert said.count("compiling kernels") == 1
    assert call_in_a_process(tmp_path, before=compiling, NUMBA_CACHE_DIR=kernels) == ""
