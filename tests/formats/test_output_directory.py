"""An output directory is there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from numbacalib.formats.output_directory import new_directory


def fail(directory, error):
    with new_directory(directory) as partial:
        (partial / "half").write_text("half of it")
        raise error


def test_contents_appear_at_the_end(tmp_path):
    with new_directory(tmp_path / "parent" / "out") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("whole")
        assert not (tmp_path / "parent" / "out").exists()
    assert (tmp_path / "parent" / "out" / "sub" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["out"]


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out") as partial:
        (partial / "file").touch()
    assert (tmp_path / "out" / "file").is_file()


def test_what_is_there_stays(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("full", "file"):
        with (
            pytest.raises(ValueError, match=f"{name}: expected a new or empty directory"),
            new_directory(tmp_path / name),
        ):
            pytest.fail("the body must not run")
    assert (tmp_path / "full" / "kept").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", ["out", "no/such/parents/out"])
def test_an_exception_leaves_nothing(tmp_path, error, name):
    with pytest.raises(type(error)):
        fail(tmp_path / name, error)
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_an_empty_directory_empty(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="no"):
        fail(tmp_path / "out", ValueError("no"))
    assert not list((tmp_path / "out").iterdir())


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"/file: expected a directory, found a file"):
        fail(tmp_path / "file" / "sub" / "out", AssertionError)


def test_an_empty_directory_keeps_its_mode_and_may_have_lost_and_found(tmp_path):
    """A volume that is mounted is a directory with a mode, an owner and sometimes lost+found."""
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    out.chmod(0o2771)
    before = out.stat()
    with new_directory(out) as partial:
        (partial / "file").touch()
    after = out.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert sorted(path.name for path in out.iterdir()) == ["file", "lost+found"]


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with new_directory(tmp_path / "out") as partial:
            (partial / "file").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "file").stat().st_mode & 0o777 == 0o640


WRITE_MODEL = """
    import resource, sys
    import numpy as np
    from numbacalib.formats.output_directory import new_directory
    from numbacalib.formats.safetensors_writer import SafetensorsWriter

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        with new_directory(sys.argv[1]) as partial, SafetensorsWriter(partial) as writer:
            writer.add("x", np.zeros(5000, np.float32))
    except OSError as error:
        sys.exit(f"OSError: {error}")
"""


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_file_that_the_system_refuses_leaves_nothing(tmp_path):
    """A limit on file sizes stands for a full disk: a write in the middle of a file fails."""
    refused = run(WRITE_MODEL, tmp_path / "out", 10_000)
    assert (refused.returncode, refused.stderr) == (1, "OSError: [Errno 27] File too large\n")
    assert not list(tmp_path.iterdir())
    assert run(WRITE_MODEL, tmp_path / "out", 30_000).returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


WAIT_INSIDE = """
    import sys
    from numbacalib.formats.output_directory import new_directory

    with new_directory(sys.argv[1]) as partial:
        (partial / "config.json").write_text("{}")
        print("inside", flush=True)
        sys.stdin.read()
"""


def test_a_kill_leaves_nothing_at_the_path_and_the_next_run_works(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAIT_INSIDE), str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"inside\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (stale,) = tmp_path.glob(".out.partial-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", stale.name]
    with new_directory(tmp_path / "out") as partial:
        (partial / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert (stale / "config.json").is_file()
