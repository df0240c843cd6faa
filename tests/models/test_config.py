"""Reading ``config.json``."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import tiny_config

from numbacalib.models import ModelConfig
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.wrappers import WRAPPERS


def test_both_generations_of_rope_keys_mean_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = tiny_config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = tiny_config(rope_parameters={"rope_theta": 5e5, **scaling})
    del new["rope_theta"]
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(new).rope_theta == 5e5
    assert ModelConfig.from_hf(new).rope_scaling == scaling


def test_what_a_file_leaves_out_is_the_architectures_default() -> None:
    config = tiny_config()
    for key in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        del config[key]
    read = ModelConfig.from_hf(config)
    assert (read.head_dim, read.num_kv_heads, read.rms_norm_eps) == (16, 4, 1e-6)
    assert (read.rope_theta, read.rope_scaling) == (10000.0, {"rope_type": "default"})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model_type": "llama"}, (False, False, False, False)),
        ({"model_type": "llama", "attention_bias": True}, (True, True, False, False)),
        ({"model_type": "llama", "mlp_bias": True}, (False, False, True, False)),
        ({"model_type": "qwen2"}, (True, False, False, False)),
        ({"model_type": "qwen3"}, (False, False, False, True)),
    ],
)
def test_biases_and_norms_of_each_architecture(
    overrides: dict[str, Any], expected: tuple[bool, ...]
) -> None:
    read = ModelConfig.from_hf(tiny_config(**overrides))
    assert (read.attention_bias, read.output_bias, read.mlp_bias, read.qk_norm) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model_type": "llama", "sliding_window": None}, (None, None)),
        ({"model_type": "mistral", "sliding_window": 4}, (4, 4)),
        ({"model_type": "qwen2", "sliding_window": 4}, (None, None)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 4,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (None, 4),
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (4, None),
        ),
    ],
)
def test_windows_of_each_layer(overrides: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert ModelConfig.from_hf(tiny_config(**overrides)).sliding_windows == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "bert"}, "model_type: expected one of llama, mistral, .* got 'bert'"),
        ({"model_type": None}, "model_type: expected one of llama, .* got None"),
        ({"hidden_size": None}, "hidden_size: expected an integer from 1 to 1048576, got None"),
        ({"hidden_act": "mish"}, "hidden_act: expected one of silu, swish, .* got 'mish'"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads: expected a divisor of num_attention_heads=4",
        ),
        ({"head_dim": 15}, "head_dim: expected an even number, got 15"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected an integer from 1 to 10000, got 0"),
        ({"hidden_size": [64]}, r"hidden_size: expected an integer from 1 .*, got \[64\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
    ],
)
def test_what_is_not_supported_says_so(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(tiny_config(**overrides))


NAN, INF = float("nan"), float("inf")
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES += ("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")


@pytest.mark.parametrize("value", [0, -1, True, 64.0, NAN, INF, "64", [64], {}, 2**40, 10**400])
@pytest.mark.parametrize("key", SIZES)
def test_sizes_are_positive_integers_within_reason(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}: expected an integer from [12] to .*, got "):
        ModelConfig.from_hf(tiny_config(**{key: value}))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_is_missing_is_named(key: str) -> None:
    config = tiny_config()
    del config[key]
    with pytest.raises(ValueError, match=f"^{key}: expected an integer .*, found none$"):
        ModelConfig.from_hf(config)


@pytest.mark.parametrize("value", [0, -1e-5, NAN, INF, 1.0, True, "1e-5", None, [1e-5], 10**400])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_numbers_are_finite_and_within_reason(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}: expected a number from .*, got "):
        ModelConfig.from_hf(tiny_config(**{key: value}))


@pytest.mark.parametrize("value", [0, 1, "true", "no", [], {}])
@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_flags_are_booleans(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}: expected true or false, got "):
        ModelConfig.from_hf(tiny_config(**{key: value}))


@pytest.mark.parametrize(
    "overrides",
    [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"attention_multiplier": 0.0078125},
        {"residual_multiplier": 0.22},
        {"embedding_multiplier": 12.0},
        {"logits_scaling": 8.0},
        {"logit_scale": 0.0625},
        {"num_experts": 8},
        {"rope_interleaved": True},
        {"no_rope_layers": [1, 0]},
        {"dual_chunk_attention_config": {"chunk_size": 262144}},
        {"text_config": {"hidden_size": 64}},
        {"transformers_weights": "other.safetensors"},
        {"bias": True},
        {"sliding_window": 4},
        {"use_sliding_window": True},
        {"model_type": "mistral", "attention_bias": True},
        {"model_type": "mistral", "mlp_bias": True},
        {"model_type": "qwen2", "mlp_bias": True},
        {"model_type": "qwen3", "mlp_bias": True},
    ],
)
def test_what_is_not_understood_is_refused_by_name(overrides: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{list(overrides)[-1]}: expected n"):
        ModelConfig.from_hf(tiny_config(**overrides))


def test_a_key_of_several_lines_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^'a\\nb': expected no key of this name in a llama[^\n]*$"
    ):
        ModelConfig.from_hf(tiny_config(**{"a\nb": 1}))


def test_what_says_nothing_about_the_computation_is_taken() -> None:
    harmless = {
        "_name_or_path": "x",
        "attention_dropout": 0.1,
        "pad_token_id": None,
        "id2label": {"0": "a"},
        "attn_logit_softcapping": None,
        "use_mrope": False,
        "pruned_heads": {},
        "hidden_act": "swish",
        "use_sliding_window": False,
        "max_window_layers": 28,
    }
    assert ModelConfig.from_hf(tiny_config(**harmless)) == ModelConfig.from_hf(tiny_config())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "mistral", "use_sliding_window": False, "sliding_window": 4}, "true where"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "full_attention in"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "expected full_attention in"),
        ({"layer_types": ["chunked_attention"] * 2}, "got 'chunked_attention'"),
        ({"layer_types": ["full_attention", ""]}, "expected full_attention in .* got ''"),
        ({"layer_types": ["full_attention"]}, "layer_types: expected 2 entries, got 1"),
        ({"layer_types": "full_attention"}, "layer_types: expected a list of strings"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: expected an integer"),
        ({"model_type": "mistral", "sliding_window": -4}, "sliding_window: expected an integer"),
        ({"model_type": "mistral", "sliding_window": "4"}, "sliding_window: expected an integer"),
        ({"model_type": "qwen2", "max_window_layers": -1}, "max_window_layers: expected an int"),
        ({"model_type": "qwen2", "max_window_layers": None}, "max_window_layers: expected an int"),
    ],
)
def test_windows_that_make_no_sense(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(tiny_config(**overrides))


def test_layer_types_of_a_mistral_count() -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = tiny_config("mistral", sliding_window=4, layer_types=kinds)
    assert ModelConfig.from_hf(config).sliding_windows == (4, None)


LINEAR, THETA = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 5e5}


def test_rope_scaling_goes_before_rope_parameters() -> None:
    config = tiny_config(rope_scaling=LINEAR, rope_parameters=THETA)
    read = ModelConfig.from_hf(config)
    assert (read.rope_theta, read.rope_scaling) == (1e4, LINEAR)
    config = tiny_config(rope_scaling={}, rope_parameters=THETA)
    assert ModelConfig.from_hf(config).rope_theta == 5e5


def test_theta_is_never_taken_from_nowhere() -> None:
    config = tiny_config(rope_scaling=LINEAR, rope_parameters=THETA)
    del config["rope_theta"]
    with pytest.raises(
        ValueError, match="rope_scaling.rope_theta: expected it here or at top level"
    ):
        ModelConfig.from_hf(config)


def test_an_original_length_beside_the_scaling_counts() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    read = ModelConfig.from_hf(tiny_config(rope_scaling=scaling))
    assert read.rope_scaling["original_max_position_embeddings"] == 32
    config = tiny_config(rope_scaling=scaling, original_max_position_embeddings=64)
    read = ModelConfig.from_hf(config)
    assert read.rope_scaling["original_max_position_embeddings"] == 64


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"full_attention": THETA, "sliding_attention": THETA},
            "rope_scaling.full_attention: expec",
        ),
        ([LINEAR], "rope_scaling: expected an object"),
        ({"rope_type": ["linear"]}, "rope_scaling.rope_type: expected one of"),
        ({"type": "mrope"}, "rope_scaling.type: expected one of"),
        (LINEAR | {"rope_theta": NAN}, "rope_scaling.rope_theta: expected a number"),
        (LINEAR | {"rope_theta": None}, "rope_scaling.rope_theta: expected a number"),
        (LINEAR | {"factor": NAN}, "rope_scaling.factor: expected a number from 1"),
        (LINEAR | {"factor": 0.5}, "rope_scaling.factor: expected a number from 1"),
        (LINEAR | {"factor": "2"}, "rope_scaling.factor: expected a number"),
        (LINEAR | {"factor": True}, "rope_scaling.factor: expected a number"),
        (LINEAR | {"attention_factor": 2.0}, "rope_scaling.attention_factor: expected no key"),
        (LINEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
        (THETA | {"factor": 2.0}, "rope_scaling.factor: expected no key .* rope of type default"),
        (THETA | {"mrope_section": [1, 2]}, "rope_scaling.mrope_section: expected no key"),
        (
            LLAMA3 | {"high_freq_factor": 0.5},
            "high_freq_factor: expected low_freq_factor 1 at least",
        ),
        (LLAMA3 | {"original_max_position_embeddings": 0}, "original_max_.*: expected an integer"),
        (
            LLAMA3 | {"original_max_position_embeddings": 9.5},
            "original_max_.*: expected an integer",
        ),
        (LONG | {"long_factor": [2.0] * 7}, "rope_scaling.long_factor: expected 8 numbers"),
        (LONG | {"short_factor": [0.0] * 8}, "rope_scaling.short_factor: expected 8 numbers"),
        (LONG | {"short_factor": ["1"] * 8}, "rope_scaling.short_factor: expected 8 numbers"),
        (
            {"rope_type": "yarn", "factor": 2.0, "truncate": None},
            "truncate: expected true or false",
        ),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}, "beta_fast: expected a number"),
    ],
)
def test_rope_parameters_are_checked(scaling: Any, message: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        with pytest.raises(ValueError, match=message.replace("rope_scaling", key)):
            ModelConfig.from_hf(tiny_config(**{key: scaling}))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model_type": "mistral", "num_attention_heads": 16}, 8),
        ({"model_type": "qwen2", "num_attention_heads": 32}, 32),
        ({"model_type": "qwen3", "num_attention_heads": 64}, 32),
        ({"model_type": "mistral", "num_key_value_heads": None}, 4),
        ({"model_type": "qwen2", "num_key_value_heads": None}, 4),
    ],
)
def test_key_value_heads_that_are_left_out(overrides: dict[str, Any], expected: int) -> None:
    config = tiny_config(**overrides)
    if "num_key_value_heads" not in overrides:
        del config["num_key_value_heads"]
    assert ModelConfig.from_hf(config).num_kv_heads == expected


SCALARS = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 2.5, NAN, INF, 10**30, 10**400, "", "yarn", "a\nb"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["rope_type", "factor", "targets", "weights"]), inner),
    ),
    max_leaves=4,
)
KEYS = ["rope_scaling", "rope_parameters", "quantization_config", "layer_types", "sliding_window"]
KEYS += ["use_sliding_window", "max_window_layers", "attention_bias", "mlp_bias", *tiny_config()]


OWN_KEYS = [
    "text_config",
    "no_rope_layers",
    "no_rope_layer_interval",
    "sliding_window_pattern",
    "logit_scale",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "residual_multiplier",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "use_qk_norm",
    "qk_layernorm",
    "original_max_position_embeddings",
    "num_nextn_predict_layers",
    "num_experts_per_tok",
]


@given(
    st.sampled_from([*ARCHITECTURES, *WRAPPERS]),
    st.dictionaries(st.sampled_from(KEYS + OWN_KEYS), VALUES),
    st.booleans(),
)
def test_any_configuration_is_read_or_refused_in_one_line(
    model_type: str, changes: dict[str, Any], wrapped: bool
) -> None:
    config = tiny_config(model_type) | changes
    if wrapped:
        config = {"model_type": model_type, "text_config": config}
    try:
        ModelConfig.from_hf(config)
        return
    except ValueError as error:
        message = str(error)
    assert message.isprintable()
