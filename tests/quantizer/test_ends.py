"""How runs end: what is found out before the first block, files, errors in one line."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from models.tiny import tiny_config, write_tiny_checkpoint
from models.tiny_gguf import tokenizer_metadata, write_gguf
from quantizer.runs import assert_one_line, assert_whole, run

from numbacalib.models import open_checkpoint
from numbacalib.quantizer import blocks, collection, pipeline
from numbacalib.quantizer.preflight import require_space

RTN = ["--method", "rtn", "--group-size", "32"]
SHORT = ["--samples", "4", "--sequence-length", "32"]


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


@pytest.fixture
def no_block(monkeypatch):
    """Fail where a block is reached."""

    def reached(*_, **__):
        pytest.fail("a block was reached")

    monkeypatch.setattr(blocks, "quantize_group", reached)
    monkeypatch.setattr(collection, "run_stages", reached)


# What is found out before the first block


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("absent/report.json", "absent/report.json: expected a report in a directory that exists"),
        ("model", "model: expected a file for the report, found a directory"),
        ("out/report.json", "report.json: expected a report outside of the output"),
        ("out", "out: expected a report outside of the output"),
    ],
)
@pytest.mark.usefixtures("no_block")
def test_a_report_that_cannot_be_written(tmp_path, model, capsys, report, message):
    command = ["quantize", model, *RTN, "--output", tmp_path / "out"]
    assert run(*command, "--report", tmp_path / report) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_failed_run_leaves_no_report_and_an_older_one_as_it_was(tmp_path, model, capsys):
    command = ["quantize", model, "--output", tmp_path / "out"]  # without a text
    assert run(*command, "--report", tmp_path / "new.json") == 2
    (tmp_path / "old.json").write_text("old")
    assert run(*command, "--report", tmp_path / "old.json") == 2
    assert not (tmp_path / "new.json").exists()
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_report_that_fails_at_the_end_says_that_the_checkpoint_is_whole(tmp_path, model, capsys):
    output = tmp_path / "out"
    assert run("quantize", model, *RTN, "--output", output, "--report", "/dev/full") == 1
    assert_one_line(capsys.readouterr().err, f"the checkpoint in {output} is whole")
    assert_whole(output)


@pytest.mark.parametrize("command", ["quantize", "collect"])
@pytest.mark.usefixtures("no_block")
def test_too_little_space_names_both_numbers(tmp_path, model, text, capsys, monkeypatch, command):
    usage = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    output = tmp_path / "out"
    assert run(command, model, "--text", text, *SHORT, "--output", output) == 1
    error = capsys.readouterr().err
    assert_one_line(error, f"{tmp_path}: expected room for ")
    assert "kB, found 1.23 kB free: --output on another file system would fit" in error
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("options", [RTN, [*RTN, "--symmetric"], [*RTN, "--bits", "3"]], ids=str)
def test_the_planned_size_is_the_size(tmp_path, monkeypatch, options):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    planned = []
    monkeypatch.setattr(pipeline, "require_space", lambda sizes, _: planned.extend(sizes.values()))
    assert run("quantize", model, *options, "--output", tmp_path / "out") == 0
    checkpoint = open_checkpoint(tmp_path / "out")
    sizes = {name: checkpoint.tensor(name).nbytes for name in checkpoint.names()}
    packed = {name: size for name, size in sizes.items() if ".weight_" in name}
    assert planned[0] == sum(sizes.values())
    # finished blocks, whose zeros are not packed
    assert sum(packed.values()) <= planned[1] < 1.5 * sum(packed.values())


def test_the_planned_size_of_statistics_is_their_size(tmp_path, model, text, monkeypatch):
    from safetensors.numpy import load_file

    planned = []
    monkeypatch.setattr(collection, "require_space", lambda sizes: planned.extend(sizes.values()))
    assert run("collect", model, "--text", text, *SHORT, "--output", tmp_path / "out") == 0
    files = [load_file(file) for file in (tmp_path / "out").glob("block-*.safetensors")]
    stored = sum(
        tensor.nbytes for file in files for name, tensor in file.items() if "tokens" not in name
    )
    sums = 4 * 2 * (6 * 64 + 96)  # of seven layers' channels in each of two blocks
    assert planned == [stored + sums]


def test_a_file_system_that_does_not_know_its_size_is_let_pass(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    require_space({tmp_path: 1 << 40})


@pytest.mark.usefixtures("no_block")
def test_an_unknown_tokenizer_is_found_first(tmp_path, capsys):
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_config(), extra=tokenizer_metadata("of-another-world"))
    assert run("quantize", file, *RTN, "--output", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr().err, "of-another-world")
    assert not list(tmp_path.glob("*out*"))


# Files


@pytest.mark.parametrize("command", ["quantize", "collect"])
def test_files_follow_the_umask(tmp_path, model, text, command):
    before = os.umask(0o027)
    try:
        options = [] if command == "collect" else ["--group-size", 32]
        output = tmp_path / "out"
        assert run(command, model, "--text", text, *SHORT, *options, "--output", output) == 0
    finally:
        os.umask(before)
    assert output.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in output.iterdir()} == {0o640}


IN_A_NAMESPACE = """
    mount -t tmpfs -o size=4m,mode=2751 tmpfs "$1" || exit 9
    "$2" -m numbacalib.cli quantize "$3" --method rtn --group-size 32 --output "$1" || exit 8
    [ "$(stat -c %a "$1")" = 2751 ] || exit 7
    cp -r "$1" "$4"
"""


def test_a_mount_point_is_an_output(tmp_path, model):
    """In a mount namespace of its own; where none can be had, other tests let the renames fail."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    (tmp_path / "volume").mkdir()
    script = [*unshare, "sh", "-c", textwrap.dedent(IN_A_NAMESPACE), "sh", tmp_path / "volume"]
    result = subprocess.run(
        [*map(str, script), sys.executable, str(model), str(tmp_path / "copy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "copy").glob(".*"))
    assert_whole(tmp_path / "copy")


# Errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(30, "Read-only file system"), 1),
        (OSError(122, "Disk quota exceeded"), 1),
        (MemoryError(), 1),
        (BrokenPipeError(32, "Broken pipe"), 1),
        (PermissionError(13, "Permission denied"), 2),
        (NotADirectoryError(20, "Not a directory"), 2),
        (RecursionError("maximum recursion depth exceeded"), 2),
        (ModuleNotFoundError("gguf is not installed: pip install 'numbacalib[models]'"), 2),
    ],
    ids=repr,
)
def test_errors_are_one_line(tmp_path, model, capsys, monkeypatch, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(blocks, "quantize_group", fail)
    assert run("quantize", model, *RTN, "--output", tmp_path / "out") == status
    assert_one_line(capsys.readouterr().err, "")
    assert not list(tmp_path.glob("*out*"))


def test_a_full_disk_while_collecting_is_one_line(tmp_path, model, text):
    """A limit on file sizes stands for a full disk."""
    script = """
        import resource, signal, sys
        from numbacalib.cli import main

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.exit(main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), "collect", model, "--text", text]
    result = subprocess.run(
        [*map(str, command), *SHORT, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert_one_line(result.stderr, "block-0000.safetensors")
    assert not list(tmp_path.glob("*out*"))
