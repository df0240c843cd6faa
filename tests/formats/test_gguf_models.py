"""GGUF files of every architecture that is written: what is read back is the model, or it is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from models.described import write_described_checkpoint
from models.gguf_models import FULL, LLAMA3, MODELS, SLIDING, YARN, model_config, write_model
from models.tiny import TEXT, random_tokens
from safetensors.numpy import load_file, save_file

from numbacalib.cli import main
from numbacalib.formats import FORMATS
from numbacalib.formats.gguf_metadata import architecture_of
from numbacalib.formats.gguf_options import WRITTEN
from numbacalib.methods import fp4_scales, rtn
from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.gguf_architectures import GGUF_ARCHITECTURES
from numbacalib.models.gguf_file import GGUFFile
from numbacalib.quantizer import Settings, quantize, verify

PLAIN = Settings(method="rtn")
LINEAR = {"rope_type": "linear", "factor": 2.0}
LINEAR_KIND = "linear_attention"
LLAMAS = {"llama", "mistral", "qwen2", "qwen3"}
"""Those of `models.tiny`."""


def written(model, output, mix="Q8_0", settings=PLAIN, **options):
    quantize(model, output, settings=settings, formats=[f"gguf:{mix}"], **options)
    (file,) = output.iterdir()
    return open_checkpoint(file)


def logits(checkpoint):
    decoder = Decoder(checkpoint)
    return np.asarray(decoder.logits(decoder.forward(random_tokens(1, 24))))


def test_every_architecture_that_is_written_is_tried_and_read():
    assert {name.partition("-")[0] for name in MODELS} | LLAMAS == set(WRITTEN)
    assert set(WRITTEN) < set(ARCHITECTURES)
    tried = {architecture_of(ModelConfig.from_hf(model_config(name))) for name in MODELS}
    assert tried | LLAMAS - {"mistral"} == set(GGUF_ARCHITECTURES)


def test_the_document_lists_all_that_are_written():
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    listed = text.partition("- Supported for writing: ")[2].partition(". Others are")[0]
    names = set(re.split(r",\s+|\s+and\s+", listed))
    assert names == {name.removesuffix("_text") for name in WRITTEN}
    assert f"[{len(WRITTEN)} architectures](#gguf)" in text


@pytest.mark.parametrize("name", MODELS)
def test_a_file_holds_the_model(tmp_path, name):
    source = write_model(tmp_path / "m", name)
    checkpoint, original = written(source, tmp_path / "out"), open_checkpoint(source)
    assert set(checkpoint.names()) == set(original.names())
    expected = logits(original)
    errors = np.abs(logits(checkpoint) - expected).max(axis=-1) / np.abs(expected).max()
    # rounding sends a token to other experts, now and then
    assert (errors < 0.05).mean() >= (0.8 if original.config.mixture else 1.0)


def test_experts_are_one_tensor_and_come_back_apart(tmp_path):
    source = write_model(tmp_path / "m", "qwen2_moe")
    checkpoint = written(source, tmp_path / "out", "Q4_K_M")
    entry = GGUFFile(checkpoint.path).tensors["blk.1.ffn_down_exps.weight"]
    assert entry.shape == (4, 256, 256)
    layers = FORMATS["gguf:Q4_K_M"].layers(checkpoint)
    for expert in range(4):
        layer = f"model.layers.1.mlp.experts.{expert}.down_proj"
        weight = open_checkpoint(source).tensor(f"{layer}.weight")
        step = np.abs(weight).max() / 4
        np.testing.assert_allclose(layers[layer].dequantize(), weight, rtol=0, atol=step)
        values = checkpoint.tensor(f"{layer}.weight")
        np.testing.assert_allclose(layers[layer].dequantize(), values, rtol=1e-5, atol=1e-6)
    again = written(checkpoint.path, tmp_path / "again", "Q8_0")
    assert set(again.names()) == set(checkpoint.names())


def test_experts_are_calibrated_on_their_tokens(tmp_path):
    (tmp_path / "text").write_text(TEXT * 20)
    source = write_model(tmp_path / "m", "qwen3_moe")
    settings = Settings(samples=8, sequence_length=64)
    options = {"text": [tmp_path / "text"], "formats": ["gguf:Q4_K_M"]}
    report = quantize(source, tmp_path / "out", settings=settings, **options)
    experts = [layer for layer in report.layers if ".experts." in layer.name]
    assert len(experts) == 4 * 4 * 3
    assert np.mean([layer.loss < layer.rtn_loss for layer in experts]) > 0.8


def test_norms_that_are_stored_as_they_multiply(tmp_path):
    """Weights minus 1 of which the smallest are lost in float32 beside 1 are no failed proof."""
    source = write_described_checkpoint(tmp_path / "m", "gemma2", dtype="bfloat16")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.input_layernorm.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][:2] = 1e-7, 3e-5
    save_file(tensors, source / "model.safetensors")
    changes = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16}
    changed(source, sliding_window=16, **changes)
    checkpoint = written(source, tmp_path / "out")
    expected = tensors[name].astype(np.float32)
    np.testing.assert_allclose(checkpoint.tensor(name), expected, rtol=0, atol=2**-24)


@pytest.mark.parametrize("name", ["deepseek_v2", "kimi_k2"])
def test_what_makes_keys_and_values_of_a_vector_is_two_tensors(tmp_path, caplog, name):
    """As they are: llama.cpp multiplies queries by one of them, transposed."""
    source = write_model(tmp_path / "m", name)
    checkpoint, original = written(source, tmp_path / "out", "Q4_K_M"), open_checkpoint(source)
    entries = GGUFFile(checkpoint.path).tensors
    assert entries["blk.1.attn_k_b.weight"].shape == (4, 256, 64)
    assert entries["blk.1.attn_v_b.weight"].shape == (4, 96, 256)
    whole = "model.layers.1.self_attn.kv_b_proj"
    assert f"{whole}.weight" in checkpoint.names()
    np.testing.assert_array_equal(
        checkpoint.tensor(f"{whole}.weight"), original.tensor(f"{whole}.weight")
    )
    assert whole not in FORMATS["gguf:Q4_K_M"].layers(checkpoint)
    assert (
        "gguf:Q4_K_M stores no codes of 4 layers, such as model.layers.0.self_attn.kv_b_proj"
        in caplog.text
    )
    again = written(checkpoint.path, tmp_path / "again", "Q8_0")
    np.testing.assert_array_equal(
        again.tensor(f"{whole}.weight"), original.tensor(f"{whole}.weight")
    )


def within_a_model_that_sees(source):
    """Put a decoder of Qwen 3 VL beside a tower, as its files have it."""
    decoder = json.loads((source / "config.json").read_text())
    tower = {"depth": 4, "deepstack_visual_indexes": [1, 2, 3]}
    whole = {"model_type": "qwen3_vl", "text_config": decoder, "vision_config": tower}
    (source / "config.json").write_text(json.dumps(whole))
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model."): tensors[name] for name in tensors}
    renamed["model.visual.patch_embed.proj.bias"] = np.zeros(4, np.float32)
    save_file(renamed, source / "model.safetensors")


def test_a_decoder_that_sees_has_its_parts_of_heads_and_no_tower(tmp_path):
    source = write_model(tmp_path / "m", "qwen3_vl_text")
    within_a_model_that_sees(source)
    checkpoint = written(source, tmp_path / "out")
    options = GGUFFile(checkpoint.path).metadata.under("qwen3vl.")
    assert options.integers("rope.dimension_sections").tolist() == [8, 12, 12, 0]
    assert options.required("n_deepstack_layers") == 3
    assert set(checkpoint.names()) == {
        name for name in open_checkpoint(source).names() if "visual" not in name
    }
    expected = logits(open_checkpoint(source))
    np.testing.assert_allclose(logits(checkpoint), expected, atol=0.05 * np.abs(expected).max())
    dropped = verify(tmp_path / "out", against=source).dropped
    assert list(dropped) == ["model.visual.patch_embed.proj.bias"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_experts_of_mxfp4_stay_what_they_are(tmp_path, method):
    """Weights on the grid already, as GPT-OSS is published, lose nothing."""
    (tmp_path / "text").write_text(TEXT * 20)
    source = write_model(tmp_path / "m", "gpt_oss")
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if ".experts." in name and name.endswith("weight"):
            scales = fp4_scales(weight, "mxfp4").scales
            grid = {"bits": 4, "group_size": 32, "symmetric": True, "element": "e2m1"}
            found = rtn(weight, scales=scales, scale_dtype=np.float32, **grid)
            tensors[name] = found.dequantize()
    save_file(tensors, source / "model.safetensors")
    settings = Settings(method=method, samples=8, sequence_length=64)
    text = {"text": [tmp_path / "text"]} if method == "gptq" else {}
    checkpoint = written(source, tmp_path / "out", "MXFP4", settings, **text)
    for name, weight in tensors.items():
        if ".experts." in name:
            np.testing.assert_array_equal(checkpoint.tensor(name), weight, err_msg=name)


def test_bounds_of_yarn_are_truncated_with_a_warning(tmp_path, caplog):
    source = write_model(tmp_path / "m", "gpt_oss", rope_scaling=YARN | {"truncate": False})
    scaling = written(source, tmp_path / "out").config.rope_scaling
    assert "llama.cpp truncates the bounds of YaRN" in caplog.text
    assert scaling["rope_type"] == "yarn"
    assert "truncate" not in scaling


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_a_window_that_llama_cpp_does_not_read_is_said(tmp_path, caplog, name):
    checkpoint = written(write_model(tmp_path / "m", name, sliding_window=16), tmp_path / "out")
    assert "llama.cpp attends beyond the window of 16 tokens" in caplog.text
    assert set(checkpoint.config.sliding_windows) == {16}


def changed(source, **options):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 32}, "attention_scale: expected 0.125 of a gemma2 in"),
        ("gemma2", {"hidden_activation": "silu"}, "activation: expected gelu_tanh of a gemma2"),
        ("qwen2_moe", {"norm_topk_prob": True}, "mixture: expected .* of a qwen2moe in GGUF"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mixture: expected .* of a qwen3moe in GGUF"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "rotary_layers: expected|rotary embedding: "),
        ("exaone4", {"layer_types": [SLIDING, FULL] * 2, "sliding_window": 8}, "sliding_windows"),
        ("granite", {"hidden_act": "gelu"}, "activation: expected silu of a granite in GGUF"),
        ("gpt_oss", {"tie_word_embeddings": True}, "tie_word_embeddings: expected False of a gpt-"),
        ("gpt_oss", {"swiglu_limit": 3.0}, "gate_clamp: expected .* of a gpt-oss in GGUF"),
        ("deepseek_v2", {"q_lora_rank": None}, "q_lora_rank: expected a number of a deepseek2"),
        ("deepseek_v3", {"rope_scaling": YARN}, "rotary embedding|yarn_log_multiplier"),
        ("deepseek_v3", {"attention_bias": True}, "output_bias: expected False of a d"),
        ("llama4_text", {"attention_chunk_size": 64}, "chunks: expected .* of a llama4 in GGUF"),
        ("qwen3_vl_text", {"rope_parameters": None}, "mrope_section: expected one of a qwen3"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings: expected False of a olmo2"),
        ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings: expected True of a gemma"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm: expected False of a phi2 in GGUF, got True"),
        ("phi3", {"head_dim": 32}, "head_dim: expected 64 of a phi3 in GGUF, got 32"),
        ("qwen3_moe", {"attention_bias": True}, "output_bias: expected False of a qwen3moe in"),
        ("gpt_oss", {"attention_bias": False}, "output_bias: expected True of a gpt-oss in GGUF"),
        ("starcoder2", {"use_bias": False}, "attention_bias: expected True of a starcoder2 in"),
        ("glm4", {"rope_scaling": LLAMA3}, "rope_scaling: expected default, linear or yarn of a"),
        ("deepseek_v3", {"rope_scaling": LINEAR}, "rope_scaling: expected default or yarn of a d"),
        ("deepseek_v3", {"num_hidden_layers": 26}, "q_lora_rank: expected none of a deepseek2 of"),
        ("deepseek_v3", {"topk_group": 2}, "n_group: expected more than topk_group 2 and less t"),
        ("deepseek_v3", {"n_group": 4}, "n_group: expected more than .* less than 4 experts in G"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm: expected False of a command-r in GGUF"),
        ("cohere2", {"sliding_window": None}, "sliding_window: expected a number of a cohere2"),
        ("exaone_moe", {"num_shared_experts": 0}, "num_shared_experts: expected a number of a e"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads: expected 4 of a olmoe in G"),
        ("afmoe", {"global_attn_every_n_layers": 2}, "rotary_layers: expected .* of a afmoe in"),
        ("afmoe", {"mup_enabled": False}, "embedding_scale: expected 16.0 of a afmoe in GGUF"),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "mixture: expected .* of a ernie4_5-moe in"),
        ("falcon", {"parallel_attn": False}, "parallel_attn: expected True of a falcon in GGUF"),
        ("falcon", {"bias": True}, "attention_bias: expected False of a falcon in GGUF, got True"),
        ("gemma4_text", {"layer_types": [FULL, SLIDING] * 2}, "num_kv_shared_layers: expected a"),
        ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob: expected True of a qwen3next"),
        ("qwen3_next", {"mlp_only_layers": [1]}, "mlp_only_layers: expected none of a qwen3next"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias: expected False of a qwen3next"),
        ("qwen3_5_text", {"linear_value_head_dim": 32}, "linear_value_head_dim: expected 64 of a"),
        ("jais2", {"num_key_value_heads": 2}, "num_key_value_heads: expected 4 of a jais2 in GGUF"),
        ("jais2", {"mlp_bias": False}, "mlp_bias: expected True of a jais2 in GGUF, got False"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache: expected at least 2 of a lfm2 in GGUF, got 1"),
        ("lfm2", {"layer_types": ["conv"] * 4}, "layer_types: expected attention in some layers"),
        ("lfm2", {"layer_types": [FULL] * 4}, "layer_types: expected convolutions in some layers"),
        ("lfm2_moe", {"norm_topk_prob": False}, "mixture: expected .* of a lfm2moe in GGUF"),
        ("lfm2_moe", {"routed_scaling_factor": 2.0}, "mixture: expected .* of a lfm2moe in GGUF"),
        ("granitemoehybrid", {"mamba_expand": 4}, "mamba_expand: expected 2 of a granitehybrid i"),
        ("granitemoehybrid", {"mamba_conv_bias": False}, "bias of the convolution: expected True"),
        ("granitemoehybrid-attention", {"position_embedding_type": "nope"}, "rotary embedding: ex"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 4}, "layer_types: expected attention in"),
        ("nemotron_h", {"use_conv_bias": False}, "bias of the convolution: expected True of a n"),
        (
            "nemotron_h",
            {"layer_types": ["mlp", "attention"] * 2 + ["mlp"]},
            "layer_types: expected Mamba 2 in some layers of a nemotron_h in GGUF, got none",
        ),
        ("nemotron_h-experts", {"mlp_bias": True}, "mlp_bias: expected False of a nemotron_h_moe"),
        (
            "nemotron_h-experts",
            {"layer_types": ["mamba", "moe", "attention", "mlp"]},
            "layer_types: expected experts in place of each MLP of a nemotron_h_moe in GGUF",
        ),
        (
            "qwen3_5_text",
            {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
            "multiple of 32",
        ),
        (
            "qwen3_5_text",
            {"layer_types": [FULL, LINEAR_KIND] * 2},
            "layer_types: expected attention in",
        ),
    ],
)
def test_options_that_llama_cpp_has_not_are_refused(tmp_path, name, options, message):
    source = write_model(tmp_path / "m", name, **options)
    with pytest.raises(ValueError, match=message) as error:
        written(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_architecture_without_a_name_there_is_refused(tmp_path):
    source = write_model(tmp_path / "m", "internlm3")
    changed(source, model_type="helium")
    with pytest.raises(ValueError, match="model_type: expected one that llama.cpp converts"):
        written(source, tmp_path / "out")


def test_skipped_layers_stay_as_they_are(tmp_path, caplog):
    """In their own type; of experts, which are one tensor, all or none."""
    source = write_model(tmp_path / "m", "qwen3_moe")
    skip = ("*.experts.*.down_proj", "*.q_proj")
    settings = Settings(method="rtn", skip=skip)
    checkpoint, original = (
        written(source, tmp_path / "out", settings=settings),
        open_checkpoint(source),
    )
    for name in ("mlp.experts.2.down_proj", "self_attn.q_proj"):
        weight = f"model.layers.3.{name}.weight"
        assert checkpoint.kind(weight).name == "F32"
        np.testing.assert_array_equal(checkpoint.tensor(weight), original.tensor(weight))
    settings = Settings(method="rtn", skip=("*.experts.2.down_proj",))
    with pytest.raises(
        ValueError, match="skip: expected all or none of the experts of blk.0.ffn_do"
    ):
        written(source, tmp_path / "other", settings=settings)
    assert not (tmp_path / "other").exists()


def test_skipped_layers_that_files_hold_transposed(tmp_path):
    source = write_model(tmp_path / "m", "gpt2")
    settings = Settings(method="rtn", skip=("model.layers.1.*",))
    checkpoint = written(source, tmp_path / "out", settings=settings)
    name = "model.layers.1.attn.c_attn.weight"
    assert checkpoint.kind(name).name == "F32"
    np.testing.assert_array_equal(checkpoint.tensor(name), open_checkpoint(source).tensor(name))
    assert not verify(tmp_path / "out", against=source).changed


def test_layers_that_predict_further_tokens_are_left_out(tmp_path, caplog):
    source = write_model(tmp_path / "m", "glm4_moe", num_nextn_predict_layers=1)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.4.eh_proj.weight"] = np.ones((256, 512), np.float32)
    save_file(tensors, source / "model.safetensors")
    options = {"settings": PLAIN, "formats": ["gguf:Q8_0"]}
    (proof,) = quantize(source, tmp_path / "out", **options).proofs
    assert set(proof.dropped) == {"model.layers.4.eh_proj.weight"}
    assert "1 tensors that are not the decoder's are left out" in caplog.text


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (["--bits", "4"], "bits"),
        (["--group-size", "128"], "group_size"),
        (["--symmetric"], "symmetric"),
        (["--asymmetric"], "symmetric"),
    ],
)
def test_options_of_the_grid_are_refused_beside_a_mix(tmp_path, capsys, option, name):
    """Their defaults too, where they are given: the mix says what each tensor gets."""
    command = ["quantize", str(tmp_path / "m"), "--format", "gguf:Q4_K_M", "--method", "rtn"]
    assert main([*command, "--output", str(tmp_path / "out"), *option]) == 2
    expected = f"{name}: expected none with gguf:Q4_K_M, which sets the grid itself"
    assert expected in capsys.readouterr().err
    for value in ({"bits": 3}, {"group_size": 64}, {"symmetric": True}, {"layer_bits": {"*": 3}}):
        with pytest.raises(ValueError, match=r"expected none with gguf:Q4_K_M"):
            quantize(tmp_path / "m", tmp_path / "out", formats=["gguf:Q4_K_M"], **value)


def test_a_run_is_repeated_by_its_settings_file(tmp_path):
    """Without options that the format does not take."""
    source = write_model(tmp_path / "m", "phi3")
    command = ["quantize", str(source), "--format", "gguf:Q8_0", "--method", "rtn"]
    report = ["--report", str(tmp_path / "run.json")]
    assert main([*command, "--output", str(tmp_path / "one"), *report]) == 0
    again = ["quantize", "--config", str(tmp_path / "run.toml"), "--output", str(tmp_path / "two")]
    assert main(again) == 0
    one, two = (next((tmp_path / name).iterdir()).read_bytes() for name in ("one", "two"))
    assert one == two
