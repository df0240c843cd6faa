"""Damaged and foreign files of statistics: one error that names the file and what was expected."""

import json
import os
import re

import gguf_bytes
import numpy as np
import pytest
import safetensors_bytes as st
from safetensors_bytes import floats, integer

from numbacalib.quantizer.importance import read_importance
from numbacalib.statistics import load_fisher, load_statistics, load_weights

NAN, INF = float("nan"), float("inf")


def refused(load, file, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{message}") as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_the_files_that_the_others_are_damaged_from(tmp_path):
    file = tmp_path / "some.safetensors"
    file.write_bytes(st.file(st.fisher()))
    (parameter,) = load_fisher(file).values()
    assert (parameter.samples, parameter.fisher.tolist()) == (3, [[1, 2]])
    assert read_importance(file)["q"].tolist() == [[1, 2]]
    file.write_bytes(st.file(st.statistics(), st.SHARED))
    loaded = load_statistics(file)
    assert loaded["q"] is loaded["k"]
    assert (loaded["q"].tokens, loaded["q"].max_abs.tolist()) == (5, [1, 2])
    assert loaded["q"].hessian.tolist() == [[2, -1], [-1, 2]]
    assert load_weights(file)["k"].astype(np.float32).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "header too small"),
        (b"anything else, such as a text", "header too large"),
        (st.file(st.fisher())[:-1], "incomplete metadata, file not fully covered"),
        (st.file(st.fisher())[:40], "invalid header length"),
        (st.with_header(b"[" * 1000), "invalid JSON in header"),
        (st.with_header({"__metadata__": {"numbacalib.statistics": 3}}), "invalid JSON in header"),
        (
            st.with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
            "",
        ),
        (
            st.with_header({"a": {"dtype": "ODD", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
            "",
        ),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, reason):
    file = tmp_path / "some.safetensors"
    file.write_bytes(content)
    refused(
        load_fisher, file, f"expected what save_fisher wrote, got a damaged file .*: .*{reason}"
    )
    refused(load_statistics, file, f"expected what save_statistics wrote, .*{reason}")
    refused(load_weights, file, f"expected what save_statistics wrote, .*{reason}")
    refused(read_importance, file, f"expected an imatrix file in GGUF form or Fisher .*{reason}")


@pytest.mark.parametrize("load", [load_fisher, load_statistics, load_weights, read_importance])
def test_pipes_directories_and_nothing(tmp_path, load):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path):
        refused(load, file, "got a directory, a pipe or a device")
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q.weight.samples": None},
            "expected statistics that save_fisher wrote, got other tensors",
        ),
        ({"odd": ("F32", [1], floats(1))}, "expected statistics that save_fisher wrote, got other"),
        (
            {"q.weight.fisher": ("F64", [1], bytes(8))},
            r"q.weight.fisher: expected F32 of any shape",
        ),
        (
            {"q.weight.fisher": ("F32", [0], b"")},
            r"fisher: expected F32 of any shape, got F32 of \[0\]",
        ),
        (
            {"q.weight.fisher": ("F32", [1], floats(NAN))},
            "fisher: expected finite values of 0 and more",
        ),
        (
            {"q.weight.fisher": ("F32", [1], floats(INF))},
            "fisher: expected finite .* got inf to inf",
        ),
        (
            {"q.weight.fisher": ("F32", [2], floats(-1, 1))},
            "fisher: expected finite .* got -1 to 1",
        ),
        (
            {"q.weight.samples": ("I64", [1], integer(1))},
            r"samples: expected I64 of \[\], got I64 of \[1\]",
        ),
        (
            {"q.weight.samples": ("F32", [], floats(1))},
            r"samples: expected I64 of \[\], got F32 of \[\]",
        ),
        (
            {"q.weight.samples": ("I64", [], integer(-1))},
            "samples: expected finite values of 0 and more",
        ),
    ],
)
def test_damaged_fisher_information(tmp_path, change, message):
    file = tmp_path / "some.safetensors"
    tensors = {name: item for name, item in (st.fisher() | change).items() if item}
    file.write_bytes(st.file(tensors))
    refused(load_fisher, file, message)
    refused(read_importance, file, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q.hessian": None}, "q.hessian: expected such a tensor, got none"),
        ({"q.tokens": None}, "q.tokens: expected such a tensor, got none"),
        (
            {"q.hessian": ("F32", [], floats(1))},
            r"hessian: expected a square matrix, got shape \[\]",
        ),
        (
            {"q.hessian": ("F32", [1, 2], floats(1, 1))},
            r"expected a square matrix, got shape \[1, 2\]",
        ),
        ({"q.hessian": ("F32", [0, 0], b"")}, r"expected a square matrix, got shape \[0, 0\]"),
        (
            {"q.hessian": ("F64", [1, 1], bytes(8))},
            r"q.mean_abs: expected shape \[1\], got \[2\]",
        ),
        (
            {"q.hessian": ("F32", [2, 2], floats(1, NAN, 1, 1))},
            "q.hessian: expected finite values, got",
        ),
        (
            {"q.hessian": ("F32", [2, 2], floats(1, 0, 0, -1))},
            "q.hessian: expected a diagonal of 0 and",
        ),
        (
            {"q.mean_abs": ("F32", [3], floats(1, 1, 1))},
            r"mean_abs: expected shape \[2\], got \[3\]",
        ),
        (
            {"q.mean_abs": ("F8_E4M3", [2], bytes(2))},
            r"mean_abs: expected F32 of \[2\], got F8_E4M3",
        ),
        (
            {"q.max_abs": ("F32", [2], floats(1, -1))},
            "q.max_abs: expected finite values of 0 and more",
        ),
        ({"q.tokens": ("I64", [], integer(-5))}, "q.tokens: expected finite values of 0 and more"),
    ],
)
def test_damaged_statistics(tmp_path, change, message):
    file = tmp_path / "some.safetensors"
    tensors = {name: item for name, item in (st.statistics() | change).items() if item}
    file.write_bytes(st.file(tensors, st.SHARED))
    refused(load_statistics, file, message)


def test_names_of_several_lines_make_one(tmp_path):
    file = tmp_path / "some.safetensors"
    file.write_bytes(
        st.file({"a\nb.fisher": ("F64", [1], bytes(8)), "a\nb.samples": ("I64", [], integer(1))})
    )
    refused(load_fisher, file, "a b.fisher: expected F32")
    file.write_bytes(st.file({}, {"numbacalib.statistics": json.dumps({"a\nb": "a\nb"})}))
    refused(load_statistics, file, "a b.hessian: expected such a tensor, got none")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("I8", [1, 2], bytes(2)), r"k.weight: expected F16 or BF16 .* got I8 of \[1, 2\]"),
        (("F32", [2], floats(1, 2)), r"k.weight: expected .* of \[None, 2\], got F32 of \[2\]"),
        (
            ("F32", [1, 3], floats(1, 2, 3)),
            r"k.weight: expected .* of \[None, 2\], got F32 of \[1, 3\]",
        ),
        (("F32", [1, 2], floats(1, NAN)), "k.weight: expected finite values, got nan to nan"),
        (("BF16", [1, 2], b"\x80\x7f\x00\x40"), "k.weight: expected finite values, got 2 to inf"),
    ],
)
def test_damaged_weights(tmp_path, item, message):
    file = tmp_path / "some.safetensors"
    file.write_bytes(st.file(st.statistics() | {"k.weight": item}, st.SHARED))
    refused(load_weights, file, message)


@pytest.mark.parametrize(
    "shared",
    [
        "",
        "[]",
        "3",
        '{"q": 3}',
        '{"q": "k"}',
        '{"q": ["q"]}',
        "[" * 100_000,
        json.dumps({"q": None}),
    ],
    ids=range(8),
)
def test_damaged_names(tmp_path, shared):
    file = tmp_path / "some.safetensors"
    file.write_bytes(st.file(st.statistics(), {"numbacalib.statistics": shared}))
    for load in (load_statistics, load_weights):
        refused(load, file, "numbacalib.statistics: expected a JSON object of layers")


def test_an_imatrix_file_is_known_by_its_first_bytes(tmp_path):
    file = tmp_path / "any.name"
    file.write_bytes(gguf_bytes.imatrix())
    (means,) = read_importance(file).values()
    assert means.tolist() == [0.5, 1, 1.5, 2]
    file.write_bytes(gguf_bytes.model())
    refused(read_importance, file, "expected an imatrix file, got another kind of GGUF file")
