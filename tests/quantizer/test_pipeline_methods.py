"""The methods on whole tiny models: channel scales that are folded, saved statistics, reports."""

import json

import numpy as np
import pytest
from models.described import write_described_checkpoint
from models.tiny import write_tiny_checkpoint
from quantizer.runs import packed_codes, run

from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.formats.imatrix import read_imatrix
from numbacalib.methods import LayerReport
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.statistics import GradientStatistics, save_fisher

SHORT = ["--samples", "4", "--sequence-length", "32"]
GROUPS = ["--group-size", "32"]


def perplexity(capsys, *arguments):
    capsys.readouterr()
    assert run("evaluate", *arguments, "--sequence-length", "32") == 0
    return float(capsys.readouterr().out.split()[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"model_type": "llama", "num_key_value_heads": 4},
        {
            "model_type": "llama",
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
        },
        {"model_type": "qwen3"},
    ],
    ids=["llama", "biased", "qwen3"],
)
def test_folding_leaves_a_block_as_it_is(tmp_path, dtype, overrides):
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path, dtype=dtype, **overrides))
    decoder = Decoder(checkpoint)
    block = decoder.block(0)
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(2, 9, decoder.config.hidden_size)).astype(np.float32)
    before = block.forward(hidden.copy())
    stored = checkpoint.tensor("model.norm.weight").dtype
    folded = [stage for stage in block.stages if block.producer(stage) is not None]
    assert len(folded) == (4 if "num_key_value_heads" in overrides else 3)
    for stage in folded:
        weights = {name: block.linears[name] for name in stage}
        channels = next(iter(weights.values())).shape[1]
        asked = np.exp(rng.normal(size=channels)).astype(np.float32)
        scales, vectors = block.fold(stage, asked, stored)
        np.testing.assert_allclose(scales, asked, rtol=2**-8)
        for name, weight in weights.items():
            np.testing.assert_array_equal(block.linears[name], weight * scales)
        assert all(vector.dtype == stored for vector in vectors.values())
        assert (f"{block.producer(stage)}.weight" in vectors) == ("norm" in block.producer(stage))
    after = block.forward(hidden.copy())
    # biases are rounded to how they are stored, all else is exact
    coarse = "attention_bias" in overrides and dtype != "float32"
    scale = np.abs(before - hidden).max()
    assert np.abs(after - before).max() < (0.02 if coarse else 1e-5) * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model_type", "folded"), [("gemma2", 4), ("phi3", 2), ("cohere", 2), ("olmo2", 2), ("phi", 1)]
)
def test_folding_leaves_blocks_of_other_architectures(tmp_path, dtype, model_type, folded):
    """Norms that store weights minus 1, fused layers and norms that two sublayers share among them."""
    write_described_checkpoint(tmp_path, model_type, dtype, num_key_value_heads=4)
    checkpoint = open_checkpoint(tmp_path)
    decoder = Decoder(checkpoint)
    block = decoder.block(0)
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(2, 9, decoder.config.hidden_size)).astype(np.float32)
    before = block.forward(hidden.copy())
    stages = [stage for stage in block.stages if block.producer(stage) is not None]
    assert len(stages) == folded
    for stage in stages:
        channels = block.linears[stage[0]].shape[1]
        asked = np.exp(0.3 * rng.normal(size=channels)).astype(np.float32)
        scales, vectors = block.fold(stage, asked, checkpoint.tensor("model.norm.weight").dtype)
        np.testing.assert_allclose(scales, asked, rtol=2**-6)
        for name, vector in vectors.items():
            assert vector.dtype == checkpoint.tensor(f"{block.name}.{name}").dtype
    after = block.forward(hidden.copy())
    coarse = dtype != "float32" and checkpoint.config.attention_bias
    assert np.abs(after - before).max() < (0.02 if coarse else 1e-5) * np.abs(before - hidden).max()


@pytest.mark.parametrize(
    "model_type", ["phi3", "phi", "gemma2", "qwen3_5_text", "gemma4_unified_text"]
)
def test_statistics_of_other_architectures(tmp_path, text, model_type):
    """Their layers have names in GGUF, too, by which llama.cpp knows their importance."""
    model = write_described_checkpoint(tmp_path / "model", model_type, num_key_value_heads=4)
    saved = tmp_path / "saved"
    assert run("collect", model, "--text", text, *SHORT, "--output", saved) == 0
    checkpoint = open_checkpoint(model)
    layers = read_imatrix(saved / "imatrix.gguf", config=checkpoint.config)
    linears = {index: Decoder(checkpoint).block(index).linears for index in range(2)}
    assert set(layers) == {f"model.layers.{i}.{name}" for i in linears for name in linears[i]}
    for source in (["--statistics", saved], ["--text", text, *SHORT]):
        more = ["--importance", saved / "imatrix.gguf", "--ranges", "weighted"]
        output = tmp_path / source[0]
        assert run("quantize", model, *source, *GROUPS, *more, "--output", output) == 0


def test_with_fewer_key_value_heads_o_proj_has_no_producer(tmp_path):
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path, num_key_value_heads=2)))
    block = decoder.block(0)
    assert block.producer(("self_attn.o_proj",)) is None
    assert block.producer(("mlp.down_proj",)) == "mlp.up_proj"


@pytest.mark.parametrize("method", [["--method", "rtn", "--ranges", "clip"], ["--method", "gptq"]])
def test_awq_scales_are_folded_into_the_checkpoint(tmp_path, text, model, capsys, method):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS, *method, "--bits", "8"]
    assert run(*command, "--channel-scales", "awq", "--output", output) == 0
    original = perplexity(capsys, model, "--text", text)
    assert perplexity(capsys, output, "--text", text) == pytest.approx(original, rel=0.02)
    before, after = open_checkpoint(model), open_checkpoint(output)
    assert len(CompressedTensors().layers(after)) == 14
    changed = [
        name
        for name in before.names()
        if name in after.names() and not np.array_equal(before.tensor(name), after.tensor(name))
    ]
    assert changed
    assert all("layernorm" in name for name in changed)
    for name in changed:
        assert after.tensor(name).dtype == before.tensor(name).dtype


def test_statistics_are_collected_once_and_quantized_from_again(tmp_path, text, model, capsys):
    saved = tmp_path / "statistics"
    assert run("collect", model, "--text", text, *SHORT, "--output", saved) == 0
    from_text, from_files = tmp_path / "from-text", tmp_path / "from-files"
    command = ["quantize", model, *GROUPS, "--bits", "3", "--passes", "0"]
    assert run(*command, "--text", text, *SHORT, "--output", from_text) == 0
    assert run(*command, "--statistics", saved, "--output", from_files) == 0
    left, right = (
        CompressedTensors().layers(open_checkpoint(path)) for path in (from_text, from_files)
    )
    first = "model.layers.0.self_attn.q_proj"
    np.testing.assert_array_equal(left[first].codes, right[first].codes)
    # what comes later was calibrated on the original model instead of the quantized one
    last = "model.layers.1.mlp.down_proj"
    assert (left[last].codes != right[last].codes).any()
    other = tmp_path / "other"
    options = ["--bits", "8", "--channel-scales", "awq", "--ranges", "weighted"]
    assert run("quantize", model, *GROUPS, "--statistics", saved, *options, "--output", other) == 0
    original = perplexity(capsys, model, "--text", text)
    assert perplexity(capsys, other, "--text", text) == pytest.approx(original, rel=0.02)


def test_importance_comes_from_a_file(tmp_path, text, model, capsys):
    saved = tmp_path / "statistics"
    assert run("collect", model, "--text", text, *SHORT, "--output", saved) == 0
    command = ["quantize", model, *GROUPS, "--bits", "3", "--method", "rtn", "--ranges", "weighted"]
    imatrix = read_imatrix(saved / "imatrix.gguf")
    assert len(imatrix) == 14
    fisher = {}
    for name, squares in imatrix.items():
        weight = open_checkpoint(model).tensor(f"{name}.weight")
        fisher[f"{name}.weight"] = GradientStatistics(weight.shape)
        fisher[f"{name}.weight"].update(np.sqrt(np.broadcast_to(squares, weight.shape)))
    save_fisher(tmp_path / "fisher.safetensors", fisher)
    sources = {
        "collected": ["--statistics", saved],
        "imatrix": ["--importance", saved / "imatrix.gguf"],
        "fisher": ["--importance", tmp_path / "fisher.safetensors"],
    }
    for name, options in sources.items():
        assert run(*command, *options, "--output", tmp_path / name) == 0
    expected = packed_codes(tmp_path / "collected")
    for name, codes in packed_codes(tmp_path / "imatrix").items():
        assert (codes != expected[name]).mean() < 0.01
    for name, codes in packed_codes(tmp_path / "fisher").items():
        assert (codes != expected[name]).mean() < 0.01


def test_importance_that_does_not_fit_is_refused(tmp_path, text, model, capsys):
    file, output = tmp_path / "importance", tmp_path / "out"
    command = ["quantize", model, *GROUPS, "--method", "rtn", "--output", output]
    weighted = [*command, "--ranges", "weighted", "--importance", file]
    save_fisher(file, {"model.layers.0.self_attn.q_proj": GradientStatistics((64, 64))})
    assert run(*weighted) == 2
    assert "expected the importance of model.layers.0.self_attn.k_proj" in capsys.readouterr().err
    file.write_bytes(b"anything")
    assert run(*weighted) == 2
    assert "importance: expected an imatrix file in GGUF form or Fisher" in capsys.readouterr().err
    assert run(*command, "--importance", file) == 2
    assert "importance: expected none with ranges 'full'" in capsys.readouterr().err
    assert run(*weighted, "--text", text, "--channel-scales", "awq") == 2
    assert "importance: expected none with channel scales" in capsys.readouterr().err
    assert not output.exists()


def test_channel_scales_by_other_magnitudes(tmp_path, text, model):
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS, "--method", "rtn", "--bits", "3"]
    norms = set()
    for options in ([], ["--awq-magnitude", "max"], ["--awq-weight-term"]):
        output = tmp_path / "-".join(["out", *options])
        assert run(*command, "--channel-scales", "awq", *options, "--output", output) == 0
        norm = open_checkpoint(output).tensor("model.layers.0.input_layernorm.weight")
        norms.add(norm.tobytes())
    assert len(norms) == 3


def test_statistics_that_are_not_there(tmp_path, model, capsys):
    absent, output = tmp_path / "absent", tmp_path / "out"
    assert run("quantize", model, *GROUPS, "--statistics", absent, "--output", output) == 2
    assert "absent: no such directory" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--act-order", "desc", "--static-groups"],
        ["--act-order", "group_aware", "--ranges", "mse", "--shrinkage", "auto"],
        ["--method", "rtn", "--ranges", "weighted"],
    ],
)
def test_options_reach_the_layers(tmp_path, text, model, options):
    output, report = tmp_path / "out", tmp_path / "report.json"
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS, "--bits", "3", *options]
    assert run(*command, "--output", output, "--report", report) == 0
    layers = json.loads(report.read_text())["layers"]
    assert len(layers) == 14
    assert layers[0].keys() == set(LayerReport.__dataclass_fields__)
    ratios = [layer["loss"] / layer["rtn_loss"] for layer in layers]
    assert np.mean(ratios) < 0.95
    assert all(layer["stored_bytes"] > 0 and layer["tokens"] == 128 for layer in layers)


def test_fewer_tokens_than_channels_are_said(tmp_path, text, model, caplog, capsys):
    command = ["quantize", model, "--text", text, *GROUPS, "--sequence-length", "40"]
    assert run(*command, "--samples", "1", "-v", "--output", tmp_path / "out") == 0
    assert (
        "14 of 14 layers had fewer tokens than channels (40 for 64, model.layers.0" in caplog.text
    )
    assert "40 < 96" in capsys.readouterr().out


def test_a_run_fails_where_too_many_layers_need_more_damping(tmp_path, text, model, caplog, capsys):
    output = tmp_path / "out"
    command = ["quantize", model, "--text", text, *GROUPS, "--sequence-length", "8"]
    command += ["--samples", "1", "--percdamp", "0", "--shrinkage", "0", "--output", output]
    assert run(*command) == 1
    assert "layers needed more damping than percdamp 0, above the share of 0.1" in (
        capsys.readouterr().err
    )
    assert not output.exists()
    assert run(*command, "--damping-tries", "1") == 1
    assert "model.layers.0.self_attn.q_proj: hessian: not positive definite" in (
        capsys.readouterr().err
    )
    assert not output.exists()
    assert run(*command, "--max-fallbacks", "1", "-v") == 0
    assert "0.01 (2 tries)" in capsys.readouterr().out
    assert "model.layers.1.mlp.down_proj: the Hessian was not positive definite" in caplog.text


def test_desc_needs_static_groups_in_a_file(tmp_path, text, model, capsys):
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS, "--output", tmp_path / "out"]
    assert run(*command, "--no-static-groups") == 2
    assert "act_order: expected static_groups with 'desc'" in capsys.readouterr().err
