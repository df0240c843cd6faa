"""What descriptions refuse, and what they make of the files of older versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.described import described_config, write_described_checkpoint

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.sublayers import Missing

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "keys of some heads": (
        "deepseek_v3",
        {"num_key_value_heads": 2},
        "num_key_value_heads: expected num_attention_heads 4, got 2",
    ),
    "halves that turn": (
        "deepseek_v3",
        {"rope_interleave": False},
        "rope_interleave: expected True, got False",
    ),
    "experts in some layers": (
        "deepseek_v3",
        {"moe_layer_freq": 2},
        "moe_layer_freq: expected 1, got 2",
    ),
    "scores of V2": (
        "deepseek_v3",
        {"scoring_func": "softmax"},
        "scoring_func: expected sigmoid, got 'softmax'",
    ),
    "groups that do not divide": (
        "deepseek_v3",
        {"n_group": 3},
        "n_group: expected a divisor of 4 experts, got 3",
    ),
    "an odd part that turns": (
        "deepseek_v3",
        {"qk_rope_head_dim": 3},
        "qk_rope_head_dim: expected an even number, got 3",
    ),
    "weights that sum to 1": (
        "deepseek_v2",
        {"norm_topk_prob": True},
        "norm_topk_prob: expected False, got True",
    ),
    "groups that are not said": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy"},
        "topk_method: expected n_group and topk_group beside",
    ),
    "tables of other tokens": (
        "gemma4_text",
        {"vocab_size_per_layer_input": 64},
        "vocab_size_per_layer_input: expected vocab_size .*, of at most 16777216, got 64",
    ),
    "tables of other tokens by default": (
        "gemma4_text",
        {"vocab_size_per_layer_input": ...},
        "vocab_size_per_layer_input: expected vocab_size .*, found none",
    ),
    "keys of no layer before": (
        "gemma4_text",
        {"num_kv_shared_layers": 2},
        "num_kv_shared_layers: expected a layer of each kind before those that share, got 2",
    ),
    "tokens that all see each other": (
        "gemma4_text",
        {"use_bidirectional_attention": "all"},
        "use_bidirectional_attention: expected one of False, vision, got 'all'",
    ),
    "experts of a model that says it has none": (
        "gemma4_text",
        {"enable_moe_block": False},
        "num_experts: expected null, or no such key, got 3",
    ),
    "kinds of layers without convolutions": (
        "lfm2",
        {"layer_types": ["conv", "sliding_attention"]},
        "layer_types: expected full_attention or conv for each of 2 layers, got",
    ),
    "two names that say two things": (
        "lfm2",
        {"block_ff_dim": 48},
        "intermediate_size: expected 48, as block_ff_dim, got 96",
    ),
    "heads that do not share groups": (
        "granitemoehybrid",
        {"mamba_n_groups": 3},
        "mamba_n_heads: expected a divisor of 128, and a multiple of 3 groups, got 8",
    ),
    "steps within limits": (
        "granitemoehybrid",
        {"time_step_limit": [0.0, 1.0]},
        r"time_step_limit: expected 0 and infinity, got \[0.0, 1.0\]",
    ),
    "heads of some keys": (
        "laguna",
        {"num_attention_heads_per_layer": [4, 5]},
        "num_attention_heads_per_layer: expected multiples of num_key_value_heads 2, got",
    ),
    "a gate for each number": (
        "laguna",
        {"gating": "per-element"},
        "gating: expected one of True, per-head, got 'per-element'",
    ),
    "kinds of blocks": (
        "nemotron_h",
        {"layer_types": ["mamba", "conv", "attention", "mlp"]},
        "layer_types: expected linear_attention, full_attention, moe, mlp for each of 4 layers",
    ),
    "experts of other vectors, with biases": (
        "nemotron_h",
        {"moe_latent_size": 8, "mlp_bias": True},
        "mlp_bias: expected false beside a moe_latent_size, got True",
    ),
    "heads of which another part turns": (
        "mistral4",
        {"qk_rope_head_dim": 2},
        "qk_rope_head_dim: expected head_dim times partial_rotary_factor, 4, got 2",
    ),
    "heads of two lengths": (
        "gemma4_unified_text",
        {
            "layer_types": ["full_attention"] * 2,
            "per_layer_config": {"0": {"head_dim": 8}, "1": {"head_dim": 16}},
        },
        "per_layer_config: expected heads of one even length, .*got ",
    ),
    "several heads of keys": (
        "gpt_bigcode",
        {"multi_query": False},
        "multi_query: expected True, got False",
    ),
    "kinds of attention": (
        "gpt_neo",
        {"attention_layers": ["global"]},
        "attention_layers: expected global or local for each of 2 layers, got",
    ),
    "values of some keys": (
        "qwen3_next",
        {"linear_num_value_heads": 3},
        "linear_num_value_heads: expected a multiple of linear_num_key_heads 2, got 3",
    ),
    "kinds of layers without memory": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention", "sliding_attention"]},
        "layer_types: expected full_attention or linear_attention for each of 2 layers, got",
    ),
    "attention without gates": (
        "qwen3_5_text",
        {"attn_output_gate": False},
        "attn_output_gate: expected True, got False",
    ),
    "no rotary parameters": (
        "gpt_oss",
        {"rope_scaling": ...},
        "rope_scaling: expected the rotary embedding's parameters, found none",
    ),
    "biases by distance": ("falcon", {"alibi": True}, "alibi: expected false: .* got True"),
    "one after the other": (
        "falcon",
        {"parallel_attn": False},
        "parallel_attn: expected true beside new_decoder_architecture, got False",
    ),
    "two norms of the old": (
        "falcon",
        {"new_decoder_architecture": False, "num_ln_in_parallel_attn": 2},
        "num_ln_in_parallel_attn: expected 1 without new_decoder_architecture, got 2",
    ),
    "norms after": (
        "opt",
        {"do_layer_norm_before": False},
        "do_layer_norm_before: expected True, got False",
    ),
    "embeddings of another size": (
        "opt",
        {"word_embed_proj_dim": 32},
        "word_embed_proj_dim: expected 64, got 32",
    ),
    "two parts that turn": (
        "gpt_neox",
        {"rotary_pct": 0.25, "partial_rotary_factor": 0.5},
        "partial_rotary_factor and rotary_pct: expected the same, got",
    ),
    "kinds of layers": (
        "llama4_text",
        {"layer_types": ["sliding_attention", "full_attention"]},
        "layer_types: expected 2 of chunked_attention and full_attention, got",
    ),
    "layers that turn": (
        "llama4_text",
        {"no_rope_layers": [1]},
        r"no_rope_layers: expected 2 entries, got \[1\]",
    ),
    "scores of each layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx: expected null, or no such key, got True",
    ),
}


def config_of(model_type: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """A configuration; an Ellipsis leaves a key out."""
    config = described_config(model_type, **overrides)
    return {key: value for key, value in config.items() if value is not ...}


@pytest.mark.parametrize(("model_type", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_computed_otherwise_is_refused(
    model_type: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        ModelConfig.from_hf(config_of(model_type, overrides))
    assert "\n" not in str(caught.value)


def test_rotary_keys_of_old_gpt_neox_files() -> None:
    old = {"rotary_pct": 0.5, "rotary_emb_base": 5000, "head_dim": 16}
    new = {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}, "head_dim": 16}
    ours = [ModelConfig.from_hf(config_of("gpt_neox", given)) for given in (old, new)]
    assert {(config.rope_theta, config.rotary_dim) for config in ours} == {(5000.0, 8)}


def test_scores_of_latent_attention_are_of_whole_heads() -> None:
    """And YaRN's magnitude is a factor of queries and of keys: DeepSeek V3's own 0.1147."""
    sizes = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    plain = ModelConfig.from_hf(config_of("deepseek_v3", sizes))
    assert plain.attention_scale == 192**-0.5
    rope = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
    rope |= {"original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    scaled = ModelConfig.from_hf(config_of("deepseek_v3", sizes | {"rope_scaling": rope}))
    assert scaled.attention_scale == pytest.approx(192**-0.5 * (1 + 0.1 * np.log(40)) ** 2)


@pytest.mark.parametrize(("new", "single", "expected"), [(1, 1, 2), (0, 1, 1), (0, 0, 4)])
def test_kv_heads_of_falcons(new: int, single: int, expected: int) -> None:
    flags = {"new_decoder_architecture": bool(new), "multi_query": bool(single)}
    assert ModelConfig.from_hf(config_of("falcon", flags)).num_kv_heads == expected


@pytest.mark.parametrize(("model_type", "most"), [("gpt2", 128), ("opt", 128)])
def test_there_are_only_so_many_learned_positions(
    tmp_path: Path, model_type: str, most: int
) -> None:
    decoder = Decoder(open_checkpoint(write_described_checkpoint(tmp_path, model_type)))
    tokens = np.zeros((1, most + 1), np.int64)
    assert decoder.embed(tokens[:, :-1]).shape == (1, most, 64)
    with pytest.raises(
        ValueError, match=f"^tokens: expected sequences of at most {most}, .* got 129"
    ):
        decoder.embed(tokens)


def test_sequences_are_no_longer_than_what_attention_sees_of_them(tmp_path: Path) -> None:
    """Of an indexer's choice: `test_experts` has what becomes of it."""
    kind = {"model_type": "deepseek_v32", "index_topk": 8}
    decoder = Decoder(open_checkpoint(write_described_checkpoint(tmp_path, "deepseek_v3", **kind)))
    assert decoder.embed(np.zeros((2, 8), np.int64)).shape == (2, 8, 64)
    with pytest.raises(ValueError, match="^tokens: expected sequences of at most 8, .* got 9"):
        decoder.embed(np.zeros((2, 9), np.int64))


@pytest.mark.parametrize("layers", [64, [64, 64]])
def test_numbers_that_all_layers_share(layers: Any) -> None:
    config = config_of("qwen2_moe", {"model_type": "hunyuan_v1_moe", "num_experts": layers})
    own = ("qwen2_moe", "moe_intermediate_size", "shared_expert", "num_experts_per", "mlp_only")
    config = {key: value for key, value in config.items() if not key.startswith(own)}
    mixture = ModelConfig.from_hf(config | {"moe_topk": layers}).mixture
    assert mixture is not None
    assert (mixture.experts, mixture.routing.experts, mixture.shared_size) == (64, 64, 96)
    message = r"^moe_topk: expected an integer from 1 to 64, or 2 that are equal, got \[1, 2\]"
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(config | {"moe_topk": [1, 2]})


def test_files_of_gemma_4_that_spell_out_what_they_have_not() -> None:
    """As published: vision tokens see each other, and nothing is added to blocks."""
    spelt = {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}
    spelt |= {"vocab_size_per_layer_input": 262144, "num_kv_shared_layers": 0}
    spelt |= {"enable_moe_block": False, "use_double_wide_mlp": False, "num_experts": None}
    config = config_of("gemma4_unified_text", {})
    plain = ModelConfig.from_hf(config)
    assert ModelConfig.from_hf(config | spelt) == plain
    dense = ModelConfig.from_hf(config | spelt | {"model_type": "gemma4_text"})
    assert (dense.layer_input_size, dense.mixture, dense.lenders) == (0, None, ())


def test_a_letter_for_each_layer_says_how_many_there_are() -> None:
    config = config_of("nemotron_h", {"layer_types": ..., "hybrid_override_pattern": "ME*-M"})
    found = ModelConfig.from_hf(config)
    assert found.halves == ("attention", "mlp", "attention", "mlp", "attention")
    assert [found.state_space_of(index) is not None for index in range(5)] == [1, 0, 0, 0, 1]
    assert [found.mixture_of(index) is not None for index in range(5)] == [0, 1, 0, 0, 0]
    named = config | {"hybrid_override_pattern": "M?"}
    with pytest.raises(
        ValueError, match=r"^layer_types: expected .* got \['linear_attention', '\?'\]"
    ):
        ModelConfig.from_hf(named)


def test_a_half_that_a_block_does_not_have_has_no_norm() -> None:
    roles = {role for architecture in ARCHITECTURES.values() for role in architecture.norms}
    assert "attention" in roles
    assert not {Missing.role, f"{Missing.role}_output"} & roles


def test_tables_of_masks_in_old_files_are_no_biases(tmp_path: Path, caplog: Any) -> None:
    from safetensors.numpy import load_file, save_file

    file = write_described_checkpoint(tmp_path, "gpt2") / "model.safetensors"
    mask = {"transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8)}
    save_file(load_file(file) | mask, file)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.dropped) == ["model.layers.0.attn.bias"]
    assert not caplog.records
