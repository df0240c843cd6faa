"""Widths under a size: what is chosen fits, is what the file has, and is said in the report."""

import numpy as np
import pytest
from models.tiny import write_tiny_checkpoint

from numbacalib.cli import main
from numbacalib.formats.registry import stored_layers
from numbacalib.models import open_checkpoint
from numbacalib.quantizer import quantize

OPTIONS = {"samples": 4, "sequence_length": 32}


@pytest.mark.parametrize(
    ("formats", "options", "mixed"),
    [
        (("compressed-tensors",), {"symmetric": True}, True),
        (("compressed-tensors",), {}, False),
        (("mlx",), {}, True),
    ],
)
def test_a_size_is_kept_and_reported(tmp_path, text, formats, options, mixed):
    model = write_tiny_checkpoint(tmp_path / "model")
    output = tmp_path / "out"
    given = OPTIONS | options
    report = quantize(model, output, text=[text], formats=formats, size=4.75, **given)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    stored = 8 * sum(layer.stored_bytes for layer in report.layers)
    assert 3.5 < stored / weights <= 4.75
    kinds = {(layer.bits, layer.group_size) for layer in report.layers}
    assert (len(kinds) > 1) == mixed
    layers = stored_layers(open_checkpoint(output))
    for layer in report.layers:
        read = layers[layer.name]
        assert (read.bits, read.group_size) == (layer.bits, layer.group_size)


def test_a_head_keeps_the_bits_that_were_asked_for(tmp_path, text):
    model = write_tiny_checkpoint(tmp_path / "model")
    given = OPTIONS | {"bits": 6, "group_size": 32, "formats": ("mlx",), "lm_head": True}
    report = quantize(model, tmp_path / "out", text=[text], size=4.75, **given)
    *inner, head = report.layers
    assert (head.name, head.bits, head.group_size) == ("lm_head", 6, 32)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in inner)
    assert 3.5 < 8 * sum(layer.stored_bytes for layer in inner) / weights <= 4.75


def test_a_size_that_nothing_fits_is_refused(tmp_path, text, capsys):
    model = write_tiny_checkpoint(tmp_path / "model")
    run = ["quantize", str(model), "--output", str(tmp_path / "out"), "--samples", "4"]
    run += ["--sequence-length", "32"]
    for arguments, message in (
        (["--text", str(text), "--size", "1.5"], "size: expected bits a weight that"),
        (["--text", str(text), "--size", "0"], "size: expected bits a weight up to 16, got 0"),
        (["--text", str(text), "--size", "4", "--method", "rtn"], "size: expected none with rtn"),
        (
            ["--text", str(text), "--size", "4", "--bits", "3", "*.q_proj=4"],
            "size: expected none with bits of single layers",
        ),
        (
            ["--text", str(text), "--size", "4", "--format", "gguf:Q4_K_M"],
            "size: expected a format whose bits can be chosen, got gguf:Q4_K_M",
        ),
    ):
        assert main([*run, *arguments]) == 2
        assert f"numbacalib: error: {message}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_choice_is_the_same_again(tmp_path, text):
    model = write_tiny_checkpoint(tmp_path / "model")
    reports = [
        quantize(model, tmp_path / name, text=[text], size=3.9, symmetric=True, **OPTIONS)
        for name in ("one", "two")
    ]
    one, two = ([(x.name, x.bits, x.group_size) for x in each.layers] for each in reports)
    assert one == two
    assert np.isfinite([layer.loss for layer in reports[0].layers]).all()
