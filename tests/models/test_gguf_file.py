"""The container: damaged files are one error that names the file and the key, at once."""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

import gguf
import gguf_bytes
import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, F32, STRING, U8, pair, tensor

from numbacalib.formats import read_imatrix
from numbacalib.models import open_checkpoint
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.models.gguf_types import tensor_type

SOME = pair("general.name", "x")


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"GGUX" + bytes(40), "not a GGUF file"),
        (gguf_bytes.file(version=0), "expected GGUF version 2 or 3, got 0"),
        (gguf_bytes.file(version=1), "expected GGUF version 2 or 3, got 1, which"),
        (gguf_bytes.file(version=4), "expected GGUF version 2 or 3, got 4"),
        (
            gguf_bytes.file(version=3 << 24),
            "expected a little-endian GGUF file, got a big-endian one",
        ),
        (gguf_bytes.file()[:20], "truncated, the header goes on beyond the file's 20 bytes"),
        (
            gguf_bytes.file(tensor_count=1 << 60),
            "number of tensors: expected at most 0 in the 16 bytes",
        ),
        (
            gguf_bytes.file(pair_count=1 << 60),
            "number of metadata: expected at most 0 in the 8 bytes",
        ),
        (
            gguf_bytes.file([pair("k", array(U8, 1 << 60))]),
            "k: truncated or damaged, array: expected",
        ),
        (
            gguf_bytes.file([pair("k", array(STRING, 1 << 60))]),
            "k: truncated or damaged, array: exp",
        ),
        (
            gguf_bytes.file([pair("k", array(ARRAY, 1))]),
            "k: expected an array of numbers or strings",
        ),
        (gguf_bytes.file([pair("k", struct.pack("<I", 13))]), "k: .* no metadata type 13"),
        (gguf_bytes.file([pair("k", array(99, 1))]), "k: .* no metadata type 99"),
        (
            gguf_bytes.file([pair("k", struct.pack("<IB", BOOL, 2))]),
            "k: expected a boolean, .* got 2",
        ),
        (gguf_bytes.file([pair(b"\xff", 1)]), "expected text in UTF-8"),
        (
            gguf_bytes.file([pair("k", struct.pack("<I", STRING) + gguf_bytes.string(b"\xff"))]),
            "k: exp",
        ),
        (gguf_bytes.file([pair("a\nb", 1)]), r"expected a printable name, got 'a\\nb'"),
        (gguf_bytes.file([], [tensor("a\nb", (1,))]), r"expected a printable name, got 'a\\nb'"),
        (gguf_bytes.file([SOME, SOME]), "general.name: expected each key once, got it again"),
        (
            gguf_bytes.file([pair("general.alignment", 0)]),
            "general.alignment: .* power of two, got 0",
        ),
        (
            gguf_bytes.file([pair("general.alignment", 24)]),
            "general.alignment: .* power of two, got 24",
        ),
        (
            gguf_bytes.file([pair("general.alignment", "a")]),
            "general.alignment: .* integer, got 'a'",
        ),
        (
            gguf_bytes.file([pair("split.count", 3)]),
            "split.count: expected a whole model, .* of 3 files",
        ),
        (
            gguf_bytes.file([], [tensor("t" * 65, (1,))]),
            "expected a name of at most 64 bytes, got 65",
        ),
        (gguf_bytes.file([], [tensor("t", ())]), "t: expected 1 to 4 dimensions, got 0"),
        (
            gguf_bytes.file([], [tensor("t", (1,), dimensions=1 << 31)]),
            "t: expected 1 to 4 dimensions, got 2147483648",
        ),
        (
            gguf_bytes.file([], [tensor("t", (4, 0))], bytes(64)),
            r"t: F32 rows .* got shape \(0, 4\)",
        ),
        (
            gguf_bytes.file([], [tensor("t", (40,), 2)], bytes(64)),
            r"t: Q4_0 rows hold multiples of 32",
        ),
        (
            gguf_bytes.file([], [tensor("t", (1,), 99)]),
            "t: expected a GGML tensor type, got number 99",
        ),
        (gguf_bytes.file([], [tensor("t", (1,), 31)]), "t: GGML type Q4_0_4_4 has been withdrawn"),
        (
            gguf_bytes.file([], [tensor("t", (1,), offset=3)], bytes(64)),
            "t: .* that 32 divides, got 3",
        ),
        (gguf_bytes.file([], [tensor("t", (1,))] * 2, bytes(64)), "t: expected each tensor once"),
        (
            gguf_bytes.file([], [tensor("t", (9,)), tensor("u", (1,), offset=32)], bytes(64)),
            "u: expected bytes of its own, got some of t",
        ),
        (
            gguf_bytes.file([], [tensor("t", (17,))], bytes(64)),
            "truncated, t ends at byte .* has 128",
        ),
        (
            gguf_bytes.file([], [tensor("t", (1 << 62, 1 << 62, 1 << 62, 1 << 62))], bytes(64)),
            "truncated, t ends at byte",
        ),
    ],
)
def test_a_damaged_file_is_one_line_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{message}") as caught:
        GGUFFile(file)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 1


def test_what_a_good_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    values = {"text": "é", "n": 7, "x": 0.5, "yes": True, "words": ["a", ""], "numbers": [1, 2]}
    table = [tensor("t", (2, 3)), tensor("u", (1,), offset=32)]
    data = struct.pack("<6f", *range(6)) + bytes(8) + struct.pack("<f", 9)
    file.write_bytes(gguf_bytes.file(gguf_bytes.pairs(values), table, data))
    found = GGUFFile(file)
    assert list(found.metadata) == list(values)
    assert found.metadata.string("text") == "é"
    assert found.metadata.integer("n") == 7
    assert (found.metadata.number("x"), found.metadata.number("n")) == (0.5, 7)
    assert found.metadata.boolean("yes") is True
    assert found.metadata.strings("words") == ["a", ""]
    np.testing.assert_array_equal(found.metadata.integers("numbers"), [1, 2])
    assert list(found.tensors) == ["t", "u"]
    np.testing.assert_array_equal(found.read("t"), np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(found.read("u"), [9])


@pytest.mark.parametrize(
    ("ask", "key", "message"),
    [
        ("string", "n", "n: expected text, got 7"),
        ("integer", "x", "x: expected an integer, got 0.5"),
        ("integer", "yes", "yes: expected an integer, got True"),
        ("number", "text", "text: expected a finite number, got 'aa"),
        ("number", "nan", "nan: expected a finite number, got nan"),
        ("boolean", "n", "n: expected true or false, got 7"),
        ("strings", "numbers", "numbers: expected an array of text, got an array of 2"),
        ("integers", "words", "words: expected an array of integers, got an array of 1"),
        ("integers", "none", "none: expected an array of integers, got none"),
        ("floats", "bad", "bad: expected an array of finite numbers, got an array of 1"),
    ],
)
def test_each_value_has_one_type(tmp_path: Path, ask: str, key: str, message: str) -> None:
    file = tmp_path / "some.gguf"
    values = {"text": "a" * 999, "n": 7, "x": 0.5, "yes": True, "words": ["a"], "numbers": [1, 2]}
    values |= {"nan": float("nan"), "bad": [float("inf")]}
    file.write_bytes(gguf_bytes.file(gguf_bytes.pairs(values)))
    with pytest.raises(ValueError, match=message) as caught:
        getattr(GGUFFile(file).metadata, ask)(key)
    assert len(str(caught.value)) < 130


def test_floats_come_as_the_decimals_they_were_written_from(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    double = struct.pack("<Id", gguf_bytes.F64, 0.1234567890123)
    file.write_bytes(gguf_bytes.file(gguf_bytes.pairs({"x": 1e-5, "y": double, "z": 3e38})))
    metadata = GGUFFile(file).metadata
    assert [metadata.number(key) for key in "xyz"] == [1e-5, 0.1234567890123, 3e38]


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    for kind, (values, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # the package's 40 bytes are of a form before llama.cpp's 36
            size = 36
        found = tensor_type(kind.value)
        assert (found.name, found.values, found.size) == (kind.name, values, size)
        assert found.dtype is None or found.dtype.itemsize == size


READABLE = sorted(
    {kind.name for kind in gguf.GGML_QUANT_SIZES}
    - {"Q8_1", "Q8_K", "Q1_0"}  # never stored, or newer than the package's code
    - {"I8", "I16", "I32", "I64"}
)


@pytest.mark.parametrize("name", READABLE)
def test_every_type_is_read_as_the_gguf_package_does(tmp_path: Path, name: str) -> None:
    """In several pieces, so that no seam between them shows."""
    kind, file = gguf.GGMLQuantizationType[name], tmp_path / "some.gguf"
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows = 3
    columns = 128 * 1024
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 120, (rows, columns // values * size), dtype=np.uint8)  # finite scales
    table = [tensor("t", (columns, rows), kind.value)]
    file.write_bytes(gguf_bytes.file([], table, stored.tobytes()))
    found = GGUFFile(file).read("t")
    assert found.shape == (rows, columns)
    doubles = stored.view(np.float64) if name == "F64" else None
    expected = gguf.dequantize(stored, kind) if doubles is None else doubles
    assert str(found.dtype) == {"F16": "float16", "BF16": "bfloat16", "F64": "float64"}.get(
        name, "float32"
    )
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_types_that_cannot_be_dequantized_are_called_by_name(tmp_path: Path, name: str) -> None:
    kind, file = gguf.GGMLQuantizationType[name], tmp_path / "some.gguf"
    values, size = gguf.GGML_QUANT_SIZES[kind]
    table = [tensor("token_embd.weight", (values,), kind.value)]
    file.write_bytes(gguf_bytes.file(gguf_bytes.pairs(gguf_bytes.LLAMA), table, bytes(size)))
    message = f"some.gguf: token_embd.weight: tensors of GGML type {name} cannot be dequantized"
    with pytest.raises(ValueError, match=message):
        open_checkpoint(file)


@pytest.mark.parametrize("item", [STRING, U8])
def test_the_few_bytes_that_looped_for_ever(tmp_path: Path, item: int) -> None:
    """An array of 2**60 items, with which the gguf package's reader fills the memory."""
    file = tmp_path / "imatrix.gguf"
    file.write_bytes(gguf_bytes.file([pair("k", array(item, 1 << 60))])[:49])
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"imatrix.gguf: k: truncated or damaged, array: expected"):
        read_imatrix(file)
    assert time.perf_counter() - start < 1


def test_pipes_and_directories_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", "."):
        with pytest.raises(
            ValueError, match="expected a GGUF file, got a directory, a pipe or a dev"
        ):
            GGUFFile(tmp_path / name)
    with pytest.raises(ValueError, match=r"pipe.gguf: expected a regular file"):
        open_checkpoint(tmp_path / "pipe.gguf")
    with pytest.raises(FileNotFoundError):
        GGUFFile(tmp_path / "none.gguf")


def test_a_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(gguf_bytes.model())
    checkpoint = open_checkpoint(file)
    assert checkpoint.tensor("model.norm.weight").tolist() == [1] * 4
    os.truncate(file, 700)
    with pytest.raises(ValueError, match=r"tiny.gguf: the file has changed since it was opened"):
        checkpoint.tensor("model.norm.weight")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        checkpoint.tensor("model.norm.weight")
    os.mkfifo(file)
    with pytest.raises(
        ValueError, match=r"tiny.gguf: expected a GGUF file, got a directory, a pipe"
    ):
        checkpoint.tensor("model.norm.weight")


def test_values_that_no_memory_holds_say_so(tmp_path: Path) -> None:
    """128 TiB of float32, beyond the address space of a process, from a sparse file of 7 TiB."""
    file, rows = tmp_path / "large.gguf", 1 << 37
    header = gguf_bytes.file([], [tensor("t", (256, rows), 34)])  # TQ1_0: 54 bytes for 256 values
    file.write_bytes(header)
    os.truncate(file, len(header) + 54 * rows)
    with pytest.raises(ValueError, match=r"large.gguf: t: its 35184372088832 values do not fit"):
        GGUFFile(file).read("t")


def test_a_file_of_16_gib_opens_without_being_read(tmp_path: Path) -> None:
    file, rows = tmp_path / "large.gguf", 1 << 20
    table = [tensor("t", (4096, rows)), tensor("u", (1,), offset=4 * 4096 * rows)]
    header = gguf_bytes.file([SOME], table)
    file.write_bytes(header)
    os.truncate(file, len(header) + 4 * 4096 * rows + 4)  # sparse: it takes no room
    start = time.perf_counter()
    found = GGUFFile(file)
    np.testing.assert_array_equal(found.read("u"), [0])
    assert time.perf_counter() - start < 0.5


def test_a_header_without_end_stops(tmp_path: Path) -> None:
    """Lengths that fit into a large file, and would be read into memory for ever."""
    file = tmp_path / "large.gguf"
    header = gguf_bytes.file([pair("k", array(F32, 1 << 30))])
    file.write_bytes(header)
    os.truncate(file, 1 << 34)
    with pytest.raises(
        ValueError, match=r"large.gguf: k: truncated or damaged, array: expected at m"
    ):
        GGUFFile(file)
    text = struct.pack("<IQ", STRING, 1 << 30)
    file.write_bytes(gguf_bytes.file([pair("k", text)]))
    os.truncate(file, 1 << 34)
    with pytest.raises(ValueError, match=r"large.gguf: k: damaged header: expected"):
        GGUFFile(file)
