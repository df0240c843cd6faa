"""Importance files against the `gguf` package, which llama.cpp's own scripts stand on."""

import re

import cases
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.described import described_config

from numbacalib.formats.imatrix import read_imatrix, write_imatrix
from numbacalib.models import ModelConfig
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.statistics import InputStatistics

NAMES = {
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output.weight",
    "model.layers.11.mlp.gate_proj": "blk.11.ffn_gate.weight",
    "model.layers.11.mlp.up_proj": "blk.11.ffn_up.weight",
    "model.layers.11.mlp.down_proj": "blk.11.ffn_down.weight",
    "lm_head": "output.weight",
}


def collected(inputs):
    statistics = InputStatistics(inputs.shape[1])
    statistics.update(inputs)
    return statistics


def foreign_file(path, tensors, kind="imatrix"):
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type(kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.asarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_llama_cpp_finds_in_the_file(tmp_path):
    inputs = {name: cases.random_matrix(i, (20 + i, 7 + i)) for i, name in enumerate(NAMES)}
    file = tmp_path / "imatrix.gguf"
    write_imatrix(
        file,
        {name: collected(x) for name, x in inputs.items()},
        datasets=["wiki.train", "café"],
        chunk_size=8,
    )
    reader = gguf.GGUFReader(file)
    fields = {key: reader.get_field(key).contents() for key in reader.fields if "." in key[1:]}
    fields = {key: value for key, value in fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["wiki.train", "café"],
        "imatrix.chunk_count": 4,  # the longest stream has 27 tokens
        "imatrix.chunk_size": 8,
    }
    assert {reader.get_field(f"imatrix.chunk_{of}").types[0].name for of in ("count", "size")} == {
        "UINT32"
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(NAMES)
    for name, theirs in NAMES.items():
        sums, counts = tensors[f"{theirs}.in_sum2"], tensors[f"{theirs}.counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert sums.shape.tolist() == [inputs[name].shape[1], 1]  # channels run fastest
        assert counts.data.ravel().tolist() == [len(inputs[name])]
        expected = (inputs[name] ** 2).sum(axis=0)
        np.testing.assert_allclose(sums.data.ravel(), expected, rtol=1e-5)


@given(tokens=st.integers(1, 50), channels=st.integers(1, 20), seed=st.integers(0, 999))
def test_mean_squares_come_back(tmp_path_factory, tokens, channels, seed):
    file = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    inputs = cases.random_matrix(seed, (tokens, channels))
    write_imatrix(file, {"model.layers.3.mlp.up_proj": collected(inputs)})
    (item,) = read_imatrix(file).items()
    assert item[0] == "model.layers.3.mlp.up_proj"
    assert item[1].dtype == np.float32
    np.testing.assert_allclose(item[1], (inputs**2).mean(axis=0), rtol=1e-5)


def test_files_of_other_writers(tmp_path):
    file = tmp_path / "imatrix.gguf"
    flat = {"blk.0.ffn_up.weight.in_sum2": [4, 8, 2], "blk.0.ffn_up.weight.counts": [4]}
    foreign_file(file, flat)
    np.testing.assert_array_equal(read_imatrix(file)["model.layers.0.mlp.up_proj"], [1, 2, 0.5])


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({"a": [1]}, "model", "expected an imatrix file, got another kind"),
        (
            {"output.weight.in_sum2": [1]},
            "imatrix",
            r"output.weight.in_sum2: expected output.weight.counts beside it, got none",
        ),
        (
            {"output.weight.counts": [1]},
            "imatrix",
            r"output.weight.counts: expected output.weight.in_sum2 beside it, got none",
        ),
        (
            {"output.weight.in_sum2": [[1, 2], [1, 2]], "output.weight.counts": [1]},
            "imatrix",
            r"output.weight.in_sum2: expected one row of sums, got shape \(2, 2\)",
        ),
        (
            {"output.weight.in_sum2": [[1], [1]], "output.weight.counts": [[1], [1]]},
            "imatrix",
            r"output.weight.counts: expected one count above 0, got \[1. 1.\]",
        ),
        (
            {"output.weight.in_sum2": [1, np.nan], "output.weight.counts": [1]},
            "imatrix",
            "output.weight.in_sum2: expected finite sums of squares, got nan to nan",
        ),
        (
            {"output.weight.in_sum2": [1, -1], "output.weight.counts": [1]},
            "imatrix",
            "output.weight.in_sum2: expected finite sums of squares, got -1.0 to 1.0",
        ),
        ({"other": [1]}, "imatrix", r"expected sums of squares \(\*.in_sum2\), found none"),
        (
            {"output.weight.in_sum2": [1], "output.weight.counts": [0]},
            "imatrix",
            r"output.weight.counts: expected one count above 0, got \[0.\]",
        ),
        (
            {"blk.0.ssm_in.weight.in_sum2": [1], "blk.0.ssm_in.weight.counts": [1]},
            "imatrix",
            "expected a tensor of a supported architecture, got blk.0.ssm_in.weight",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, kind, message):
    file = tmp_path / "imatrix.gguf"
    foreign_file(file, tensors, kind)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{message}"):
        read_imatrix(file)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64", "Q8_0"])
def test_sums_of_another_type_are_read_as_that(tmp_path, kind):
    file = tmp_path / "imatrix.gguf"
    sums = np.arange(64, dtype=np.float32)[None] * 127  # exact in each type
    writer = gguf.GGUFWriter(file, arch="")
    writer.add_type("imatrix")
    kind = gguf.GGMLQuantizationType[kind]
    stored = sums.astype(np.float64) if kind.name == "F64" else gguf.quantize(sums, kind)
    writer.add_tensor("output.weight.in_sum2", stored, raw_dtype=kind)
    writer.add_tensor("output.weight.counts", np.float32([[4]]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = stored if kind.name == "F64" else gguf.dequantize(stored, kind)
    np.testing.assert_array_equal(read_imatrix(file)["lm_head"], expected[0] / 4)


def test_errors_leave_no_file(tmp_path):
    file = tmp_path / "imatrix.gguf"
    some = collected(cases.random_matrix(1, (3, 4)))
    with pytest.raises(
        ValueError, match="expected a tensor of a supported architecture, got h.0.attn"
    ):
        write_imatrix(file, {"h.0.attn": some})
    with pytest.raises(ValueError, match="statistics: expected tokens in every layer, got none in"):
        write_imatrix(file, {"lm_head": some, "model.layers.0.mlp.up_proj": InputStatistics(4)})
    with pytest.raises(ValueError, match="chunk_size: expected 1 to"):
        write_imatrix(file, {"lm_head": some}, chunk_size=0)
    assert not file.exists()


def test_channels_and_names_are_those_of_the_file(tmp_path):
    """Heads of values stand in another order, and a layer may be two tensors."""
    config = ModelConfig.from_hf(described_config("qwen3_5_text"))
    layer = "model.layers.0.linear_attn.out_proj"
    inputs = np.repeat(np.arange(1, 5, dtype=np.float32), 8)[None]  # four heads of 8
    write_imatrix(tmp_path / "one", {layer: collected(inputs)}, config=config)
    stored = GGUFFile(tmp_path / "one").read("blk.0.ssm_out.weight.in_sum2").ravel()
    np.testing.assert_array_equal(stored, np.repeat([1, 9, 4, 16], 8))
    means = read_imatrix(tmp_path / "one", config=config)
    np.testing.assert_array_equal(means[layer], inputs[0] ** 2)
    config = ModelConfig.from_hf(described_config("qwen3_next"))
    layer = "model.layers.0.linear_attn.in_proj_qkvz"
    write_imatrix(tmp_path / "two", {layer: collected(inputs)}, config=config)
    names = {name for name in GGUFFile(tmp_path / "two").tensors if name.endswith("in_sum2")}
    assert names == {"blk.0.attn_qkv.weight.in_sum2", "blk.0.attn_gate.weight.in_sum2"}
    assert set(read_imatrix(tmp_path / "two", config=config)) == {layer}
    layer = "model.layers.0.shared_mlp.input_linear"
    for experts, end in ((0, ""), (2, "_shexp")):
        options = {"num_local_experts": experts, "num_experts_per_tok": experts}
        config = ModelConfig.from_hf(described_config("granitemoehybrid", **options))
        file = tmp_path / f"experts{experts}"
        write_imatrix(file, {layer: collected(inputs)}, config=config)
        names = {name for name in GGUFFile(file).tensors if name.endswith("in_sum2")}
        assert names == {f"blk.0.ffn_{role}{end}.weight.in_sum2" for role in ("gate", "up")}
        assert set(read_imatrix(file, config=config)) == {layer}
