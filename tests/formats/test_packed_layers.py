"""The pack-quantized format: layers packed and read back, whole checkpoints, what is refused."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from formats.naive_packing import naive_pack
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import tiny_config, write_tiny_checkpoint

from numbacalib.formats import LayerGrid, dequantized, stored_format
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.formats.safetensors_format import Left
from numbacalib.methods import QuantizedWeight, rtn
from numbacalib.models import ModelConfig, open_checkpoint
from numbacalib.models.checkpoint import TensorInfo

FORMAT = CompressedTensors()
pack = FORMAT.pack
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


def unpack(tensors, layer: QuantizedWeight) -> QuantizedWeight:
    """Read back tensors on the grid of a layer."""
    size = layer.group_size if layer.group_size < layer.codes.shape[1] else None
    grid = LayerGrid(layer.bits, size, layer.symmetric, np.dtype(np.float32))
    return FORMAT.unpack(tensors, grid)


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
    assert_same(unpack(pack(quantized), quantized), quantized)


def small_layer(**settings) -> QuantizedWeight:
    weight = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    return rtn(weight, **({"bits": 3, "group_size": 16, "symmetric": False} | settings))


def test_groups_out_of_order_are_read_but_not_written():
    g_idx = np.arange(48)[::-1] // 16
    layer = replace(small_layer(), g_idx=g_idx)
    with pytest.raises(ValueError, match="g_idx: expected None"):
        pack(layer)
    tensors = pack(small_layer()) | {"weight_g_idx": g_idx.astype(np.int32)}
    read = unpack(tensors, small_layer())
    np.testing.assert_array_equal(read.dequantize(), layer.dequantize())
    tensors["weight_g_idx"][7] = 3
    with pytest.raises(ValueError, match="weight_g_idx: expected 0 to 2, got 0 to 3"):
        unpack(tensors, small_layer())


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
        unpack(tensors, small_layer())


SHAPES = {"a.q_proj": (24, 96), "a.k_proj": (24, 96), "a.down_proj": (24, 80)}


def grids_of(shapes, *, bits, group_size, symmetric, dtype=np.float32):
    """Grids of layers of these shapes, all asked to be on the same one."""
    weights = {name: TensorInfo(shape, np.dtype(dtype)) for name, shape in shapes.items()}
    asked = LayerGrid(bits, group_size, symmetric, np.dtype(dtype))
    return FORMAT.grids(weights, dict.fromkeys(shapes, asked))


def sizes_of(grids):
    return {name: grid.group_size for name, grid in grids.items()}


def config_of(grids):
    return FORMAT.configuration(grids, Left())["quantization_config"]


def test_a_symmetric_model_has_a_config_group_for_each_length():
    grids = grids_of(SHAPES, bits=4, group_size=32, symmetric=True)
    assert sizes_of(grids) == {"a.q_proj": 32, "a.k_proj": 32, "a.down_proj": 20}
    config = config_of(grids)
    assert "dequantize" not in config
    first, second = config["config_groups"].values()
    assert first["targets"] == ["a.down_proj"]
    assert (first["weights"]["strategy"], first["weights"]["group_size"]) == ("group", 20)
    assert second["targets"] == ["Linear"]
    assert (second["weights"]["strategy"], second["weights"]["group_size"]) == ("group", 32)


def test_an_asymmetric_model_has_groups_of_one_length():
    grids = grids_of(SHAPES, bits=4, group_size=32, symmetric=False)
    assert set(sizes_of(grids).values()) == {16}
    (group,) = config_of(grids)["config_groups"].values()
    assert (group["targets"], group["weights"]["group_size"]) == (["Linear"], 16)


def test_widths_are_by_layer_on_symmetric_grids_alone():
    weights = {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in SHAPES.items()}
    asked = {
        name: LayerGrid(8 if "down" in name else 4, 16, True, np.dtype(np.float32))
        for name in SHAPES
    }
    grids = FORMAT.grids(weights, asked)
    assert grids == asked
    first, second = config_of(grids)["config_groups"].values()
    assert (first["targets"], first["weights"]["num_bits"]) == (["a.down_proj"], 8)
    assert (second["targets"], second["weights"]["num_bits"]) == (["Linear"], 4)
    asymmetric = {name: replace(grid, symmetric=False) for name, grid in asked.items()}
    with pytest.raises(
        ValueError,
        match=r"all layers on one grid .* a\.k_proj on 4 bits, .* a\.down_proj on 8 bits",
    ):
        FORMAT.grids(weights, asymmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, None])
def test_grids_of_groups_that_divide(group_size, symmetric):
    grids = grids_of(
        {"q": (24, 96), "k": (24, 64)}, bits=4, group_size=group_size, symmetric=symmetric
    )
    assert sizes_of(grids) == {"q": group_size, "k": group_size}
    (group,) = config_of(grids)["config_groups"].values()
    strategy = "channel" if group_size is None else "group"
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == (strategy, group_size)


def test_zero_points_that_no_client_reads_are_refused():
    """One word of 4-bit zero points a group; tests/interop shows that all others are read."""
    small = {"a.k_proj": (8, 64)}
    with pytest.raises(ValueError, match=r"a\.k_proj: .* 4-bit zero points of 8 rows in 2 groups"):
        grids_of(small, bits=4, group_size=32, symmetric=False)
    for bits, size, symmetric in ((4, 32, True), (4, None, False), (4, 64, False), (5, 32, False)):
        grids_of(small, bits=bits, group_size=size, symmetric=symmetric)
    grids_of({"a.k_proj": (9, 64)}, bits=4, group_size=32, symmetric=False)


@pytest.mark.parametrize("symmetric", [False, True])
def test_checkpoint_round_trip(tmp_path, symmetric):
    """What the reader gives is what was quantized; everything else is as it was."""
    source = open_checkpoint(
        write_tiny_checkpoint(tmp_path / "source", dtype="bfloat16", intermediate_size=80)
    )
    layers = [name.removesuffix(".weight") for name in source.names() if "_proj.w" in name]
    shapes = {layer: source.info(f"{layer}.weight").shape for layer in layers}
    settings = {"bits": 3, "symmetric": symmetric}
    grids = grids_of(shapes, group_size=32, dtype=ml_dtypes.bfloat16, **settings)
    assert set(sizes_of(grids).values()) == ({32, 20} if symmetric else {16})
    expected = {
        name: source.tensor(name).astype(np.float32)
        for name in source.names()
        if name.removesuffix(".weight") not in layers
    }
    (tmp_path / "written").mkdir()
    with FORMAT.writer(tmp_path / "written", source, grids) as writer:
        for layer, grid in grids.items():
            weight = source.tensor(f"{layer}.weight")
            quantized = rtn(
                weight, group_size=grid.group_size, scale_dtype=grid.scale_dtype, **settings
            )
            assert writer.add_layer(layer, quantized) == FORMAT.packed_bytes(weight.shape, grid)
            expected[f"{layer}.weight"] = quantized.dequantize()

    checkpoint = open_checkpoint(tmp_path / "written")
    data = (checkpoint.path / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert len(data) == 8 + header + writer.planned_bytes
    form = stored_format(checkpoint)
    assert form.name == "compressed-tensors"
    assert set(form.layers(checkpoint)) == set(layers)
    read = dequantized(checkpoint)
    assert set(read.names()) == set(expected)
    for name, values in expected.items():
        assert read.info(name).shape == values.shape
        np.testing.assert_array_equal(read.tensor(name).astype(np.float32), values, strict=True)
    assert "quantization_config" not in read.hf_config()


class FakeCheckpoint:
    """Tensors in memory, under a quantization_config."""

    path = "somewhere"
    config = ModelConfig.from_hf(tiny_config())

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
    return config_of({"a.q": LayerGrid(3, 16, True, np.dtype(np.float32))}) | changes


def packed_layers(config, tensors):
    return FORMAT.layers(FakeCheckpoint(config, tensors))


def test_a_layer_is_matched_by_name_then_expression_then_class():
    layers = {"a.q": 2, "a.k": 5, "b.q": 8}
    tensors = {
        f"{name}.{kind}": tensor
        for name, bits in layers.items()
        for kind, tensor in pack(small_layer(bits=bits, symmetric=True)).items()
    }
    groups = config_groups(**{"Linear": 8, "re:a[.]": 5, "a.q": 2})
    packed = packed_layers(packed_config(config_groups=groups), tensors)
    for name, bits in layers.items():
        assert_same(packed[name], small_layer(bits=bits, symmetric=True))


def test_a_layer_without_a_config_group():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    config = packed_config(config_groups=config_groups(**{"a.k": 3}))
    with pytest.raises(
        ValueError, match=r"^somewhere: quantization_config: expected a config group for a\.q"
    ):
        packed_layers(config, tensors)


def test_a_layer_is_stored_in_one_way():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    tensors["a.q.weight"] = np.zeros((5, 48), np.float32)
    with pytest.raises(ValueError, match=r"^somewhere: a\.q\.weight_packed: expected no a\.q\.w"):
        packed_layers(packed_config(), tensors)


def test_groups_are_as_long_as_the_configuration_says():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    config = packed_config(config_groups=config_groups(Linear=3))
    config["config_groups"]["group_0"]["weights"]["group_size"] = 48
    packed = packed_layers(config, tensors)
    with pytest.raises(ValueError, match=r"a\.q\.weight_scale: expected groups of 48 .* of 16"):
        packed["a.q"]


def test_a_damaged_layer_is_named():
    tensors = {f"a.q.{kind}": t for kind, t in pack(small_layer(symmetric=True)).items()}
    del tensors["a.q.weight_scale"]
    packed = packed_layers(packed_config(), tensors)
    with pytest.raises(ValueError, match=r"^somewhere: a\.q\.weight_scale: expected a tensor"):
        packed["a.q"]


def test_not_quantized():
    assert stored_format(FakeCheckpoint(None, {})) is None


WEIGHTS = packed_config()["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "bits": 4},
            "quant_method: expected a supported one .*awq, compressed-tensors.*got 'bits",
        ),
        (packed_config(format="int-quantized"), "format: expected pack-quantized"),
        (
            packed_config(format="nvfp4-pack-quantized"),
            "group_0.format: expected nvfp4-pack-quantized, got 'pack-quantized'",
        ),
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
        dequantized(FakeCheckpoint(config, {}))
