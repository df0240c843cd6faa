"""Targets and ranges that a run takes where a text runs through the original model too."""

from dataclasses import replace

import numpy as np
from models.tiny import write_tiny_checkpoint
from quantizer.runs import packed_codes, run

from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.models import HOST, Decoder, open_checkpoint
from numbacalib.quantizer import Settings, calibration
from numbacalib.quantizer.calibration import TextCalibration

SHORT = ["--samples", "4", "--sequence-length", "32"]
GROUPS = ["--group-size", "32"]
PROPAGATED = ["--target", "propagated", "--target-strength"]
OTHERS = ["--ranges", "weighted", "--range-norm", "3"]


def outputs_error(model, output, tokens):
    """Mean squared difference of the hidden states after the last block."""
    states = [Decoder(open_checkpoint(model)).forward(tokens)]
    layers = CompressedTensors().layers(open_checkpoint(output))

    def weight(name):
        return layers[name.removesuffix(".weight")].dequantize()

    states.append(Decoder(open_checkpoint(output), weight).forward(tokens))
    return float(np.mean((states[1] - states[0]) ** 2))


def test_a_propagated_target_and_refit_come_nearer_to_the_model(tmp_path, text, model):
    command = ["quantize", model, "--text", text, "--samples", "16", "--sequence-length", "32"]
    command += [*GROUPS, "--bits", "3"]
    runs = {
        "layerwise": ["--target", "layerwise"],
        "propagated": [*PROPAGATED, "1"],
        "refit": ["--target", "layerwise", "--refit", "--passes", "3"],
        "others": OTHERS,
        "nothing": [*PROPAGATED, "0", "--no-refit", "--passes", "0"],
        "default": [*PROPAGATED, "0"],
    }
    decoder = Decoder(open_checkpoint(model))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (8, 32))
    errors = {}
    for name, options in runs.items():
        assert run(*command, *options, "--output", tmp_path / name) == 0
        errors[name] = outputs_error(model, tmp_path / name, tokens)
    assert errors["nothing"] == errors["layerwise"]
    assert errors["default"] == errors["refit"]
    assert len(set(errors.values())) == 4
    assert errors["refit"] < errors["layerwise"]


def test_the_first_layers_see_the_original_inputs(tmp_path):
    decoder = Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path)))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (4, 16))
    calibration = TextCalibration(decoder, tokens, propagated=True)
    kept = {}
    for index in range(2):
        block = decoder.block(index)
        for ((stage, statistics),) in calibration.stages(index, block, {}):
            kept[index, stage] = statistics
            for kind in stage:  # what quantization would do, and more
                block.linears[kind] = block.linears[kind] * np.float32(1.05)
    plain = TextCalibration(decoder, tokens)
    for index in range(2):
        for ((stage, expected),) in plain.stages(index, decoder.block(index), {}):
            found = kept[index, stage]
            # the original inputs' own moment follows from those that are kept
            h, c, d = found.hessian, found.cross, found.drift
            scale = abs(expected.hessian).max()
            np.testing.assert_allclose(d + c + c.T - h, expected.hessian, rtol=0, atol=1e-5 * scale)
            first = (index, stage) == (0, decoder.block(0).stages[0])
            assert (abs(d).max() == 0) == first
            into_residual = stage[0].endswith(("o_proj", "down_proj"))
            assert (found.residual is not None) == into_residual


def test_of_a_long_text_the_first_tokens_run_through_the_original_model(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PAIRED_TOKENS", 32)
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    decoder = Decoder(checkpoint, place=replace(HOST, batch_tokens=16))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (4, 16))
    found = {}
    for count in (4, 2):  # two of four sequences are all that there are of two
        run = TextCalibration(decoder, tokens[:count], propagated=True)
        for index in range(2):
            block = decoder.block(index)
            for ((stage, statistics),) in run.stages(index, block, {}):
                found[count, index, stage] = statistics
                for kind in stage:
                    block.linears[kind] = block.linears[kind] * np.float32(1.05)
        found[count, "head"] = run.head()
    for (count, *where), statistics in found.items():
        if count == 4:
            first = found[2, *where]
            assert (statistics.tokens, first.tokens) == (64, 32)
            assert statistics.companions == first.companions
            moved, expected = (each.cross - each.hessian for each in (statistics, first))
            scale = abs(first.hessian).max()
            np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-5 * scale)
            assert abs(statistics.hessian - first.hessian).max() > 1e-3 * scale


def test_a_target_that_cannot_be_is_refused(tmp_path, text, model, capsys):
    saved = tmp_path / "statistics"
    assert run("collect", model, "--text", text, *SHORT, "--output", saved) == 0
    output = tmp_path / "out"
    command = ["quantize", model, *GROUPS, "--output", output]
    assert run(*command, "--statistics", saved, "--target", "propagated") == 2
    assert "target: expected layerwise with statistics" in capsys.readouterr().err
    options = ["--target", "propagated", "--target-strength", "2"]
    assert run(*command, "--text", text, *options) == 2
    assert "target_strength: expected 0 to 1, got 2" in capsys.readouterr().err
    assert not output.exists()


def test_default_ranges_are_weighted_where_there_is_a_text_anyway(tmp_path, text, model):
    assert Settings().ranges == "weighted"
    assert Settings(method="rtn").ranges == "full"
    assert replace(Settings(), bits=3).ranges == "weighted"
    command = ["quantize", model, "--text", text, *SHORT, *GROUPS, "--bits", "3"]
    assert run(*command, "--output", tmp_path / "default") == 0
    assert run(*command, "--ranges", "weighted", "--output", tmp_path / "weighted") == 0
    assert run(*command, "--ranges", "full", "--output", tmp_path / "full") == 0
    default, weighted, full = (packed_codes(tmp_path / n) for n in ("default", "weighted", "full"))
    for name, codes in default.items():
        np.testing.assert_array_equal(codes, weighted[name])
    assert any((full[name] != codes).any() for name, codes in default.items())
