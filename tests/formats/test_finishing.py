"""What is finished is brought to its place, or kept: mount points, file systems, interrupts, locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from numbacalib.formats.output_directory import new_directory

NAMES = ["a-tokenizer.json", "config.json", "model.safetensors"]


def write(path, **options):
    with new_directory(path, **options) as partial:
        for name in NAMES:
            (partial / name).write_text(name)


def assert_whole(path):
    assert sorted(entry.name for entry in path.iterdir()) == NAMES
    assert all((path / name).read_text() == name for name in NAMES)


def refuse(monkeypatch, function, kind, when=lambda *_: True):
    """Let a function of `os` fail with the error `kind`, where `when` says so of its arguments."""
    real = getattr(os, function)

    def refused(*arguments, **options):
        if when(*arguments):
            raise OSError(kind, os.strerror(kind), arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr(os, function, refused)


@pytest.mark.parametrize("kind", [errno.EBUSY, errno.EXDEV], ids=errno.errorcode.get)
def test_where_the_directory_cannot_be_renamed_its_files_are(tmp_path, monkeypatch, kind):
    """A rename onto a mount point fails with EBUSY."""
    refuse(monkeypatch, "replace", kind, lambda source, _: Path(source).is_dir())
    write(tmp_path / "out")
    assert_whole(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_existing_directory_is_never_renamed_onto_and_gets_config_json_last(
    tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    seen = []
    real = os.replace

    def watched(source, target):
        assert not Path(source).is_dir()
        seen.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write(out)
    assert_whole(out)
    assert seen == ["a-tokenizer.json", "model.safetensors", "config.json"]


def test_the_current_directory_is_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(".")
    assert_whole(tmp_path)
    assert_whole(Path())  # and still the current directory


def kept_of(error, tmp_path):
    """The directory that an error's one line names."""
    text = str(error.value)
    assert "\n" not in text
    kept = tmp_path / re.search(r"all files are kept in (.*)$", text)[1]
    assert_whole(kept)
    return kept


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_failure_at_the_end_keeps_what_is_finished(tmp_path, monkeypatch, exists, kind):
    out = tmp_path / "out"
    if exists:
        out.mkdir()

    def fail(*_):
        raise kind("no")

    real = os.replace
    # the last move fails, those before it are taken back
    monkeypatch.setattr(
        os,
        "replace",
        lambda a, b: fail() if str(b).endswith(("config.json", "/out")) else real(a, b),
    )
    with pytest.raises(kind, match="out: no; all files") as raised:
        write(out)
    monkeypatch.undo()
    kept = kept_of(raised, tmp_path)
    assert kept.name.startswith("out.finished-")
    assert not (out / "config.json").exists()
    if not exists:
        assert not out.exists()
        write(out, clean=True)  # no leftover of a killed run, so that it stays
        assert_whole(out)
        assert_whole(kept)


def test_a_disk_that_is_full_when_synced_keeps_what_is_finished(tmp_path, monkeypatch):
    refuse(monkeypatch, "fsync", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left") as raised:
        write(tmp_path / "out")
    kept_of(raised, tmp_path)


@pytest.mark.parametrize("kind", [errno.EINVAL, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_that_does_not_sync_directories(tmp_path, monkeypatch, kind):
    def is_directory(descriptor):
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)

    refuse(monkeypatch, "fsync", kind, is_directory)
    write(tmp_path / "out")
    assert_whole(tmp_path / "out")


def test_what_came_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OSError, match=r"such as config\.json; all files") as raised:  # noqa: SIM117
        with new_directory(out) as partial:
            for name in NAMES:
                (partial / name).write_text(name)
            (out / "config.json").write_text("precious")
    assert (out / "config.json").read_text() == "precious"
    kept_of(raised, tmp_path)


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "out"
    with new_directory(out) as first:
        with pytest.raises(ValueError, match=r"out: another run is writing to it"):
            write(out, clean=True)
        assert first.is_dir()
        write(tmp_path / "other")
        for name in NAMES:
            (first / name).write_text(name)
    assert_whole(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


HOLD = """
    import sys
    from numbacalib.formats.output_directory import new_directory

    with new_directory(sys.argv[1]):
        print("inside", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("exists", [False, True])
def test_leftovers_are_of_killed_runs_only(tmp_path, caplog, exists):
    """Of two runs to names that begin alike, one is killed and one goes on."""
    caplog.set_level(logging.INFO, "numbacalib")
    out, live = tmp_path / "out", tmp_path / "out.partial-0"
    if exists:
        out.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(HOLD)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen([*command, str(out)], **streams) as killed,
        subprocess.Popen([*command, str(live)], **streams) as alive,
    ):
        for process in (killed, alive):
            assert process.stdout.readline() == b"inside\n"
        with pytest.raises(ValueError, match="another run is writing to it"):
            write(out)
        killed.kill()
        killed.wait()
        room = out if exists else tmp_path
        name = "numbacalib" if exists else "out"
        (stale,) = room.glob(f".{name}.partial-" + "[0-9a-f]" * 8)

        def fail():
            with new_directory(out):
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert stale.is_dir()
        assert caplog.messages == [
            f"leftovers of killed runs in {room}: {stale.name} (--clean removes them)"
        ]
        write(out, clean=True)
        assert_whole(out)
        assert not stale.exists()
        assert caplog.messages[1:] == [f"removed leftovers of killed runs in {room}: {stale.name}"]
        alive.communicate()
        assert alive.returncode == 0  # nobody took its files away
    assert live.is_dir()


def test_a_file_system_without_locks_is_written_to_and_not_cleaned(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    other = tmp_path / ".out.partial-01234567"  # a leftover, or a run's of another machine
    other.mkdir()
    write(tmp_path / "out", clean=True)
    assert_whole(tmp_path / "out")
    assert other.is_dir()
    assert "its file system has no locks" in caplog.text
