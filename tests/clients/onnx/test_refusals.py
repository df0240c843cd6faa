"""What of ONNX models and their calibration is refused, and the command line."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from clients.onnx_models import RNG, ROUNDED, model_of, product, reader_of_text, weight_of
from models.tiny import TEXT
from onnx import helper

from numbacalib.cli import main
from numbacalib.quantizer import Settings, quantize_onnx


@pytest.mark.parametrize(
    ("settings", "arrays", "message"),
    [
        ({"bits": 3}, None, "bits: expected 2, 4 or 8, got 3"),
        ({"group_size": 48}, None, "group_size: expected 16, 32, 64, 128 or 256, got 48"),
        ({"group_size": None}, None, "group_size: expected 16, .* got one scale a row"),
        ({"static_groups": False}, None, "act_order: expected static_groups"),
        ({"target": "propagated"}, None, "target: expected layerwise for ONNX"),
        ({}, None, "calibration: expected a file of inputs, got None"),
        ({"method": "rtn"}, {"x": np.zeros((2, 64))}, "calibration: expected None with round"),
        ({}, {"z": np.zeros((2, 64))}, "x.npz: expected arrays named x, got z"),
        ({}, {"x": np.zeros((0, 64))}, "x.npz: x: expected at least one sample"),
        ({}, {"x": np.zeros((9, 64), int)}, "ONNX Runtime does not run it"),
        ({}, {"x": np.full((9, 64), np.nan, np.float32)}, "product: "),
        ({}, b"nothing", "x.npz: expected a .npz file"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path, settings, arrays, message):
    path = product(tmp_path, weight_of(64, 32))
    calibration = None
    if arrays is not None:
        calibration = tmp_path / "x.npz"
        if isinstance(arrays, bytes):
            calibration.write_bytes(arrays)
        else:
            np.savez(calibration, **arrays)
    asked = Settings(**({"bits": 4, "group_size": 32} | settings))
    with pytest.raises(ValueError, match=message) as error:
        quantize_onnx(path, tmp_path / "out", calibration=calibration, settings=asked)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_that_are_none(tmp_path):
    path = tmp_path / "model.onnx"
    for content in (b"nothing of the kind", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.onnx: expected an ONNX model"):
            quantize_onnx(path, tmp_path / "out", settings=ROUNDED)
    onnx.save(model_of([helper.make_node("Neg", ["x"], ["y"])], {}), path)
    with pytest.raises(ValueError, match="expected MatMul or Gemm nodes with a constant weight"):
        quantize_onnx(path, tmp_path / "out", settings=ROUNDED)


def test_the_command_line(tmp_path, capsys):
    path = product(tmp_path, weight_of(64, 32))
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((16, 64)).astype(np.float32))
    command = ["quantize", str(path), "--bits", "4", "--group-size", "32"]
    command += ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "report.json")]
    given = ["--calibration", str(tmp_path / "x.npz"), "--format", "onnx"]
    assert main([*command, *given]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["layers"][0]["name"] == "product"
    for wrong, line in (
        (
            ["--format", "gptq"],
            "format: expected onnx or onnx:float or onnx:qdq for an ONNX model, got gptq",
        ),
        (["--text", "x"], "text: expected none with an ONNX model, which takes --calibration"),
        (["--device", "cuda"], "device: expected cpu with an ONNX model, got 'cuda'"),
    ):
        assert main([*command, *wrong]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (["input_ids"], TEXT.encode(), "text.txt: expected text for 4 sequences of 48 tokens"),
        (["input_ids"], b"\xff\xfe", "text.txt: expected text in UTF-8 or a .npz file"),
        (["input_ids", "pixels"], TEXT.encode() * 20, "got pixels of .*calibrate it on a .npz"),
        (["x"], TEXT.encode() * 20, "expected a .npz of arrays named x: .* does not read text"),
    ],
)
def test_texts_that_do_not_fit_are_refused(tmp_path, names, content, message):
    path, _ = reader_of_text(tmp_path, names)
    (tmp_path / "text.txt").write_bytes(content)
    settings = Settings(bits=4, group_size=32, samples=4, sequence_length=48)
    with pytest.raises(ValueError, match=message):
        quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "text.txt", settings=settings)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"expected a tokenizer\.json" if "x" not in names else "text"
    ):
        quantize_onnx(path, tmp_path / "out", calibration=tmp_path / "text.txt", settings=settings)
    assert not (tmp_path / "out").exists()
