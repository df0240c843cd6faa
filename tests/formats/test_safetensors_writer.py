"""The safetensors writer against the safetensors library."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file

from numbacalib.formats.safetensors_writer import SafetensorsWriter
from numbacalib.models.safetensors_file import StoredTensor


def tensors():
    rng = np.random.default_rng(0)
    return {
        "odd": rng.integers(0, 9, (3,), np.uint8),
        "bfloat16": rng.standard_normal((5, 3)).astype(ml_dtypes.bfloat16),
        "float16": rng.standard_normal((7,)).astype(np.float16),
        "float32": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "transposed": rng.standard_normal((4, 6)).T,
        "int32": rng.integers(-5, 5, (1, 9), np.int32),
        "int64": np.array([3, 4]),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 4), np.float32),
        "flags": np.array([[True, False]]),
        "complex": np.array([1 + 2j], np.complex64),
    }


def test_one_file(tmp_path):
    with SafetensorsWriter(tmp_path) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert writer.total_bytes == sum(tensor.nbytes for tensor in tensors().values())
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors().keys()
    for name, tensor in tensors().items():
        np.testing.assert_array_equal(read[name], tensor, strict=True)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def stored_tensors():
    """One of 24 elements of each type that the format has, by the type's name."""
    bits = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
    bits |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    bits |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
    bits |= {"F64": 64, "I64": 64, "U64": 64, "C64": 64}
    rng = np.random.default_rng(1)
    return {
        name: StoredTensor(name, (3, 8), rng.integers(0, 256, 3 * width, np.uint8))
        for name, width in bits.items()
    }


@pytest.mark.parametrize("shard_bytes", [1 << 30, 100])
def test_tensors_of_every_type_are_written_as_they_are(tmp_path, shard_bytes):
    """The library finds every one of them valid, and the same bytes."""
    with SafetensorsWriter(tmp_path, shard_bytes=shard_bytes) as writer:
        for name, tensor in stored_tensors().items():
            writer.add_stored(name, tensor)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        for name, read in deserialize(file.read_bytes()):
            found[name] = (read["dtype"], tuple(read["shape"]), bytes(read["data"]))
    assert found == {
        name: (tensor.dtype_name, tensor.shape, tensor.data.tobytes())
        for name, tensor in stored_tensors().items()
    }


def test_every_tensor_is_aligned_in_the_file(tmp_path):
    with SafetensorsWriter(tmp_path) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
    data = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, tensor in tensors().items():
        begin, _ = header[name]["data_offsets"]
        assert (start + begin) % tensor.itemsize == 0, name


def test_shards(tmp_path):
    parts = {f"t{index}": np.full(25, index, np.float32) for index in range(5)}
    parts["large"] = np.arange(99.0)
    with SafetensorsWriter(tmp_path, shard_bytes=200) as writer:
        for name, tensor in parts.items():
            writer.add(name, tensor)
        # What was passed on is on the disk: only the shard in work is held.
        assert len(list(tmp_path.iterdir())) == 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 100 + 99 * 8
    files = [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    places = dict(zip(parts, [0, 0, 1, 1, 2, 3], strict=True))
    assert index["weight_map"] == {name: files[place] for name, place in places.items()}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*files, "model.safetensors.index.json"}
    for name, tensor in parts.items():
        read = load_file(tmp_path / index["weight_map"][name])[name]
        np.testing.assert_array_equal(read, tensor, strict=True)


def test_a_name_twice(tmp_path):
    with SafetensorsWriter(tmp_path, shard_bytes=1) as writer:
        writer.add("a", np.zeros(3))
        writer.add("b", np.zeros(3))
        with pytest.raises(ValueError, match="name: expected one not written before, got 'a'"):
            writer.add("a", np.ones(3))


@pytest.mark.parametrize("dtype", [complex, object, ">f4", ml_dtypes.int4])
def test_a_dtype_without_a_name(tmp_path, dtype):
    with (
        SafetensorsWriter(tmp_path) as writer,
        pytest.raises(TypeError, match=r"^x: expected a dtype of F64, "),
    ):
        writer.add("x", np.zeros(3, dtype))


def test_an_exception_leaves_no_model(tmp_path):
    def interrupted():
        with SafetensorsWriter(tmp_path, shard_bytes=1) as writer:
            writer.add("a", np.zeros(3))
            writer.add("b", np.zeros(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.glob("*.safetensors*"))
