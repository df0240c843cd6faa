"""ONNX models calibrated on arrays and on texts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from clients.onnx_models import RNG, model_of, outputs_of, product, reader_of_text, weight_of
from models.tiny import TEXT, tiny_tokenizer
from onnx import helper

from numbacalib.formats.onnx_nodes import StoredProducts
from numbacalib.methods import gptq
from numbacalib.quantizer import Settings, quantize_onnx
from numbacalib.statistics import InputStatistics


@pytest.mark.parametrize("channels", [64, 50])
def test_gptq_sees_what_the_layer_is_fed(tmp_path, channels):
    """Codes are those of `gptq` from the same inputs, in batches or not."""
    weight = weight_of(channels, 24)
    x = RNG.standard_normal((37, channels)).astype(np.float32) @ weight_of(channels, channels)
    np.savez(tmp_path / "x.npz", x=x)
    grid = {"bits": 4, "group_size": 32, "symmetric": True}
    settings = Settings(**grid, ranges="full", shrinkage=0)
    path = product(tmp_path, weight)
    quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "x.npz", settings=settings)
    ((layer, _),) = StoredProducts(tmp_path / "out" / "model.onnx").values()
    size = 64
    statistics = InputStatistics(size)
    filled = np.zeros((32, size), np.float32)  # whole batches of 8
    filled[:, :channels] = x[:32]
    statistics.update(filled)
    matrix = np.zeros((24, size), np.float32)
    matrix[:, :channels] = weight.T
    options = {"bits": 4, "group_size": 32, "symmetric": True, "scale_dtype": np.float32}
    expected = gptq(matrix, statistics.hessian, act_order="desc", static_groups=True, **options)
    same = (layer.codes == expected.codes).mean()
    assert same > 0.99  # sums of batches round differently, and a tie may fall the other way


def test_hessians_beyond_one_pass(tmp_path, monkeypatch):
    """The samples run again for those that did not fit; codes are the same."""
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"], "l0")]
    for i in range(1, 4):
        nodes += [
            helper.make_node("Tanh", [f"h{i - 1}"], [f"t{i}"]),
            helper.make_node("MatMul", [f"t{i}", f"w{i}"], ["y" if i == 3 else f"h{i}"], f"l{i}"),
        ]
    path = tmp_path / "model.onnx"
    onnx.save(model_of(nodes, {f"w{i}": weight_of(64, 64) for i in range(4)}), path)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((64, 64)).astype(np.float32))
    settings = Settings(bits=4, group_size=32)
    found = []
    for name, size in (("one", 1 << 30), ("many", 40_000)):
        monkeypatch.setattr("numbacalib.quantizer.onnx_samples.HESSIAN_BYTES", size)
        quantize_onnx(path, tmp_path / name, calibration=tmp_path / "x.npz", settings=settings)
        found.append(StoredProducts(tmp_path / name / "model.onnx"))
    assert found[0] == found[1]


@pytest.mark.parametrize("channels", [64, 50])
def test_channel_scales_are_divided_out_before_the_product(tmp_path, channels):
    weight = weight_of(channels, 32)
    x = RNG.standard_normal((64, channels)).astype(np.float32)
    x[:, 3] *= 50
    np.savez(tmp_path / "x.npz", x=x)
    path = product(tmp_path, weight)
    losses = []
    for scales in ("none", "awq"):
        output = tmp_path / scales
        settings = Settings(method="rtn", bits=4, group_size=32, channel_scales=scales)
        calibration = tmp_path / "x.npz" if scales == "awq" else None
        quantize_onnx(path, output, calibration=calibration, settings=settings)
        (y,) = outputs_of(output / "model.onnx", x)
        losses.append(((y - x @ weight) ** 2).sum())
    assert losses[1] < 0.5 * losses[0]
    kinds = [node.op_type for node in onnx.load(tmp_path / "awq" / "model.onnx").graph.node]
    assert kinds == ["Mul", "MatMulNBits"]


def test_models_of_a_fixed_batch(tmp_path):
    path = product(tmp_path, weight_of(64, 32), batch=3)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((10, 64)).astype(np.float32))
    settings = Settings(bits=4, group_size=32, shrinkage=0.1)
    options = {"calibration": tmp_path / "x.npz", "settings": settings}
    (report,) = quantize_onnx(path, tmp_path / "out", **options)
    assert report.tokens == 9
    np.savez(tmp_path / "x.npz", x=np.ones((2, 64), np.float32))
    with pytest.raises(ValueError, match=r"as many samples of each input, 3 or more, got"):
        quantize_onnx(path, tmp_path / "other", **options)


def test_a_text_is_tokenized_by_the_tokenizer_beside_the_model(tmp_path):
    """Codes are those of the same tokens in a file of arrays."""
    names = ["input_ids", "attention_mask", "token_type_ids", "position_ids"]
    path, _ = reader_of_text(tmp_path, names)
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    settings = Settings(bits=4, group_size=32, samples=4, sequence_length=48)
    options = {"calibration": tmp_path / "text.txt", "settings": settings}
    (report,) = quantize_onnx(path, tmp_path / "one", **options)
    assert report.tokens == 4 * 48
    ids = tiny_tokenizer().encode(TEXT * 20).ids
    rows = np.array(ids[: len(ids) // 46 * 46]).reshape(-1, 46)
    rows = rows[np.arange(4) * len(rows) // 4]
    rows = np.pad(rows, ((0, 0), (1, 1)))
    arrays = dict.fromkeys(names, np.zeros_like(rows)) | {"input_ids": rows}
    np.savez(tmp_path / "x.npz", **arrays)
    quantize_onnx(path, tmp_path / "two", calibration=tmp_path / "x.npz", settings=settings)
    one, two = (StoredProducts(tmp_path / name / "model.onnx") for name in ("one", "two"))
    assert one == two
