"""The pack-quantized format: layers packed and read back, whole checkpoints, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from formats.naive_packing import naive_pack
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import tiny_config, tiny_tensors

from numbacalib.formats.compressed_tensors import (
    PackedLayers,
    PackedLayout,
    is_compressed,
    pack,
    unpack,
    weight_reader,
)
from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import open_checkpoint

SCALE_DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@st.composite
def quantized_weights(draw):
    bits, symmetric = draw(st.integers(2, 8)), draw(st.booleans())
    rows, groups, group_size = draw(st.tuples(*[st.integers(1, 40), *[st.integers(1, 9)] * 2]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    zeros = rng.integers(0, 1 << bits, (rows, groups), np.uint8)
    return QuantizedWeight(
        codes=rng.integers(0, 1 << bits, (rows, groups * group_size), np.uint8),
        scales=rng.uniform(0.01, 1, (rows, groups)).astype(draw(st.sampled_from(SCALE_DTYPES))),
        zeros=np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
    )


def assert_same(actual: QuantizedWeight, expected: QuantizedWeight) -> None:
    np.testing.assert_array_equal(actual.codes, expected.codes, strict=True)
    np.testing.assert_array_equal(actual.scales, expected.scales, strict=True)
    np.testing.assert_array_equal(actual.zeros, expected.zeros, strict=True)
    assert (actual.bits, actual.group_size, actual.symmetric) == (
        expected.bits,
        expected.group_size,
        expected.symmetric,
    )


@given(quantized_weights())
def test_tensors_of_a_layer(quantized):
    tensors = pack(quantized)
    words = naive_pack(quantized.codes, quantized.bits)
    np.testing.assert_array_equal(tensors.pop("weight_packed"), words, strict=True)
    np.testing.assert_array_equal(tensors.pop("weight_scale"), quantized.scales, strict=True)
    shape = np.array(quantized.codes.shape, np.int64)
    np.testing.assert_array_equal(tensors.pop("weight_shape"), shape, strict=True)
    if not quantized.symmetric:
        zeros = naive_pack(quantized.zeros.T, quantized.bits).T
        np.testing.assert_array_equal(tensors.pop("weight_zero_point"), zeros, strict=True)
    assert not tensors


@given(quantized_weights())
def test_round_trip(quantized):
    assert_same(
        unpack(pack(quantized), bits=quantized.bits, symmetric=quantized.symmetric), quantized
    )


def small_layer(**settings) -> QuantizedWeight:
    weight = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    return rtn(weight, **({"bits": 3, "group_size": 16, "symmetric": False} | settings))


def test_groups_out_of_order_are_read_but_not_written():
    g_idx = np.arange(48)[::-1] // 16
    layer = replace(small_layer(), g_idx=g_idx)
    with pytest.raises(ValueError, match="g_idx: expected None"):
        pack(layer)
    tensors = pack(small_layer()) | {"weight_g_idx": g_idx.astype(np.int32)}
    read = unpack(tensors, bits=3, symmetric=False)
    np.testing.assert_array_equal(read.dequantize(), layer.dequantize())
    tensors["weight_g_idx"][7] = 3
    with pytest.raises(ValueError, match="weight_g_idx: expected 0 to 2, got 0 to 3"):
        unpack(tensors, bits=3, symmetric=False)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("weight_scale", lambda _: None, "weight_scale: expected a tensor of this name"),
        ("weight_zero_point", lambda _: None, "weight_zero_point: expected a tensor"),
        ("weight_scale", lambda t: t[:4], r"weight_scale: expected \[5, any\], got float16 \[4, 3"),
        ("weight_scale", lambda t: t.repeat(4, 1)[:, :5], "weight_scale: expected a divisor of K"),
        ("weight_packed", lambda t: t.view(np.float32), r"expected int32 \[5, 5\], got float32"),
        (
            "weight_packed",
            lambda t: np.pad(t, ((0, 0), (0, 1))),
            r"int32 \[5, 5\], got .* \[5, 6\]",
        ),
        ("weight_zero_point", lambda t: t.T, r"expected int32 \[1, 3\], got int32 \[3, 1\]"),
        ("weight_shape", lambda t: t[:1], r"weight_shape: expected integer \[2\]"),
        ("weight_shape", lambda t: t * [1, 0], "weight_scale: expected a divisor of K = 0"),
    ],
)
def test_damaged_layer(name, damage, message):
    tensors = pack(small_layer())
    damaged = damage(tensors.pop(name))
    if damaged is not None:
        tensors[name] = damaged
    with pytest.raises(ValueError, match=message):
        unpack(tensors, bits=3, symmetric=False)


SHAPES = {"a.q_proj": (24, 96), "a.k_proj": (24, 96), "a.down_proj": (24, 80)}


def test_symmetric_layout_has_a_config_group_for_each_length():
    layout = PackedLayout(SHAPES, bits=4, group_size=32, symmetric=True)
    assert layout.group_sizes == {"a.q_proj": 32, "a.k_proj": 32, "a.down_proj": 20}
    config = layout.quantization_config()
    assert "dequantize" not in config
    first, second = config["config_groups"].values()
    assert first["targets"] == ["a.down_proj"]
    assert (first["weights"]["strategy"], first["weights"]["group_size"]) == ("group", 20)
    assert second["targets"] == ["Linear"]
    assert (second["weights"]["strategy"], second["weights"]["group_size"]) == ("group", 32)


def test_asymmetric_layout_has_groups_of_one_length():
    layout = PackedLayout(SHAPES, bits=4, group_size=32, symmetric=False)
    assert set(layout.group_sizes.values()) == {16}
    (group,) = layout.quantization_config()["config_groups"].values()
    assert (group["targets"], group["weights"]["group_size"]) == (["Linear"], 16)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, None])
def test_layout_of_groups_that_divide(group_size, symmetric):
    layout = PackedLayout(
        {"q": (24, 96), "k": (24, 64)}, bits=4, group_size=group_size, symmetric=symmetric
    )
    assert layout.group_sizes == {"q": group_size, "k": group_size}
    (group,) = layout.quantization_config()["config_groups"].values()
    strategy = "channel" if group_size is None else "group"
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == (strategy, group_size)


def test_zero_points_that_no_client_reads_are_refused():
    """One word of 4-bit zero points a group; tests/interop shows that all others are read."""
    small = {"a.k_proj": (8, 64)}
    with pytest.raises(ValueError, match=r"a\.k_proj: .* 4-bit zero points of 8 rows in 2 groups"):
        PackedLayout(small, bits=4, group_size=32, symmetric=False)
    for bits, size, symmetric in ((4, 32, True), (4, None, False), (4, 64, False), (5, 32, False)):
        PackedLayout(small, bits=bits, group_size=size, symmetric=symmetric)
    PackedLayout({"a.k_proj": (9, 64)}, bits=4, group_size=32, symmetric=False)


@pytest.mark.parametrize("symmetric", [False, True])
def test_checkpoint_round_trip(tmp_path, symmetric):
    """What the reader gives is what was quantized; everything else is as it was."""
    config = tiny_config(intermediate_size=80)
    tensors = tiny_tensors(config)
    layers = {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight")
    }
    layout = PackedLayout(
        {name: weight.shape for name, weight in layers.items()},
        bits=3,
        group_size=32,
        symmetric=symmetric,
    )
    assert set(layout.group_sizes.values()) == ({32, 20} if symmetric else {16})
    expected = {}
    with SafetensorsWriter(tmp_path) as writer:
        for name, tensor in tensors.items():
            layer = name.removesuffix(".weight")
            if layer not in layers:
                writer.add(name, tensor.astype(ml_dtypes.bfloat16))
                expected[name] = tensor.astype(ml_dtypes.bfloat16).astype(np.float32)
                continue
            size = layout.group_sizes[layer]
            quantized = rtn(tensor, bits=3, group_size=size, symmetric=symmetric)
            for kind, part in pack(quantized).items():
                writer.add(f"{layer}.{kind}", part)
            expected[name] = quantized.dequantize()
    config["quantization_config"] = layout.quantization_config()
    (tmp_path / "config.json").write_text(json.dumps(config))

    checkpoint = open_checkpoint(tmp_path)
    assert is_compressed(checkpoint.hf_config())
    assert set(PackedLayers(checkpoint)) == set(layers)
    read = weight_reader(checkpoint)
    for name, values in expected.items():
        np.testing.assert_array_equal(read(name), values, strict=True)


class FakeCheckpoint:
    """Tensors in memory, under a quantization_config."""

    path = "somewhere"

    def __init__(self, config, tensors):
        self._config, self._tensors = config, tensors

    def hf_config(self):
        return {"quantization_config": self._config}

    def names(self):
        return tuple(self._tensors)

    def tensor(self, name):
        return self._tensors[name]


def config_groups(**bits_of_target):
    return {
        f"group_{index}": {
            "targets": [target],
            "weights": {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 16},
        }
        for index, (target, bits) in enumerate(bits_of_target.items())
    }


def packed_config(**changes):
    config = PackedLayout({}, bits=3, group_size=16, symmetric=True).quantization_config()
    return config | changes


def test_a_layer_is_matched_by_name_then_expression_then_class():
    layers = {"a.q": 2, "a.k": 5, "b.q": 8}
    tensors = {
        f"{name}.{kind}": tensor
        for name, bits in layers.items()
        for kind, tensor in pack(small_layer(bits=bits, symmetric=True)).items()
    }
    groups = config_groups(**{"Linear": 8, "re:a[.]": 5, "a.q": 2})
    packed = PackedLayers(FakeCheckpoint(packed_config(config_groups=groups), tensors))
    for name, bits in layers.items():
        assert_same(packed[name], small_layer(bits=bits, symmetric=True))


def test_a_layer_without_a_config_group():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    config = packed_config(config_groups=config_groups(**{"a.k": 3}))
    with pytest.raises(
        ValueError, match=r"^somewhere: quantization_config: expected a config group for a\.q"
    ):
        PackedLayers(FakeCheckpoint(config, tensors))


def test_a_layer_is_stored_in_one_way():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    tensors["a.q.weight"] = np.zeros((5, 48), np.float32)
    with pytest.raises(ValueError, match=r"^somewhere: a\.q\.weight_packed: expected no a\.q\.w"):
        PackedLayers(FakeCheckpoint(packed_config(), tensors))


def test_groups_are_as_long_as_the_configuration_says():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    config = packed_config(config_groups=config_groups(Linear=3))
    config["config_groups"]["group_0"]["weights"]["group_size"] = 48
    packed = PackedLayers(FakeCheckpoint(config, tensors))
    with pytest.raises(ValueError, match=r"a\.q\.weight_scale: expected groups of 48 .* of 16"):
        packed["a.q"]


def test_a_damaged_layer_is_named():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    del tensors["a.q.weight_scale"]
    packed = PackedLayers(FakeCheckpoint(packed_config(), tensors))
    with pytest.raises(ValueError, match=r"^somewhere: a\.q\.weight_scale: expected a tensor"):
        packed["a.q"]


def test_not_quantized():
    assert not is_compressed({"model_type": "llama"})


WEIGHTS = packed_config()["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            "quant_method: expected compressed-tensors, got 'gptq'",
        ),
        (packed_config(format="nvfp4-pack-quantized"), "format: expected pack-quantized"),
        (packed_config(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme: expected null"),
        (packed_config(transform_config={"groups": 1}), "transform_config: expected null"),
        (
            packed_config(config_groups={"W4A16": ["Linear"]}),
            "config_groups.W4A16: expected an object",
        ),
        (
            packed_config(config_groups={"g": WEIGHTS | {"input_activations": {"num_bits": 8}}}),
            "g.input_activations: expected null",
        ),
        (packed_config(quant_type="fp8"), "quantization_config.quant_type: expected no key"),
        (packed_config(config_groups=[1]), "config_groups: expected an object"),
        (packed_config(config_groups={"g": WEIGHTS | {"targets": [1]}}), "g.targets: expected a"),
        (packed_config(config_groups={"g": WEIGHTS | {"weights": None}}), "g.weights: expected an"),
        (packed_config(config_groups={"g": WEIGHTS | {"targets": ["re:(a{9})+"]}}), "targets: exp"),
        (packed_config(config_groups=config_groups(Linear=True)), "num_bits: expected an integer"),
        (
            packed_config(config_groups=config_groups(Linear=1)),
            "num_bits: expected an integer from 2 to 8, got 1",
        ),
        (
            packed_config(config_groups={"g": WEIGHTS | {"format": "int-quantized"}}),
            "g.format: expected pack-quantized, got 'int-quantized'",
        ),
    ],
)
def test_other_quantizations_are_refused_before_any_work(config, message):
    with pytest.raises(ValueError, match=message):
        is_compressed({"quantization_config": config})
    with pytest.raises(ValueError, match=message):
        weight_reader(FakeCheckpoint(config, {}))
