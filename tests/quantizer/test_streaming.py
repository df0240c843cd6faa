"""A residual stream that a device has no room for: it passes through, and the files are the same."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from models.described import write_described_checkpoint
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.models import Decoder, Place, open_checkpoint, open_place
from numbacalib.models.parts import Parts
from numbacalib.models.sublayers import MLP
from numbacalib.ops.matrix import add_scaled, to_host
from numbacalib.quantizer import Settings, blocks, pipeline, quantize
from numbacalib.quantizer.calibration import TextCalibration
from numbacalib.quantizer.memory import Demand

SMALLEST = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""What the simulator takes seconds for."""


LENGTH = 4
"""Tokens of a sequence, and of a part of the residual stream."""


@pytest.fixture
def device(backend):
    return "cpu" if backend.name == "numpy" else "cuda"


@pytest.fixture(autouse=True)
def _sequences_alone(monkeypatch):
    """A part of the residual stream is one sequence."""

    def opened(name):
        return replace(open_place(name), batch_tokens=LENGTH)

    monkeypatch.setattr(pipeline, "open_place", opened)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return [tmp_path / "text.txt"]


def sizes(backend):
    return SMALLEST if backend.name == "cudasim" else {}


def test_parts_come_change_and_go_back(tmp_path, backend, device):
    decoder = Decoder(
        open_checkpoint(write_tiny_checkpoint(tmp_path, **sizes(backend))),
        place=replace(open_place(device), batch_tokens=LENGTH),
    )
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (5, LENGTH))
    if backend.name == "numpy":  # where all stays
        assert decoder.states(tokens).stay
        return
    expected = to_host(decoder.embed(tokens))
    parts = decoder.states(tokens, streamed=True)
    twin = parts.copied()
    others = parts.others()
    assert parts.tokens == 5 * LENGTH
    for part in parts.changed():
        others.append(part)
        add_scaled(part, part, 2.0)
    for passes, factor in ((parts, 3), (twin, 1), (others, 1), (parts.copied(), 3)):
        found = np.concatenate([to_host(part) for part in passes])
        np.testing.assert_array_equal(found, factor * expected)
    next(iter(parts))  # and no more
    np.testing.assert_array_equal(to_host(list(parts)[4]), 3 * expected[4:])


def quantized(model, output, place, monkeypatch, free=None, **options):
    """Quantize with so much memory free, and return the bytes of the file and the plan."""
    plans = []
    with monkeypatch.context() as patch:
        if free is not None:
            patch.setattr(Place, "free_bytes", lambda own: None if own.name == "cpu" else free)
        quantize(
            model, output, bits=4, group_size=8, samples=3, sequence_length=LENGTH, device=place,
            planned=plans.append, **options,
        )  # fmt: skip
    return (output / "model.safetensors").read_bytes(), plans[0]


def test_a_run_that_streams_writes_the_same(tmp_path, backend, device, text, monkeypatch):
    """A byte too little makes it stream."""
    model = write_tiny_checkpoint(tmp_path / "model", **sizes(backend))
    options = {"text": text, "target": "layerwise"}
    if backend.name == "cudasim":  # which would take minutes for GPTQ
        options |= {"method": "rtn", "ranges": "weighted"}
    whole, plan = quantized(model, tmp_path / "whole", device, monkeypatch, **options)
    assert plan.streamed_bytes == 0
    free = (plan.device_bytes or 1 << 40) - 1
    streamed, plan = quantized(model, tmp_path / "out", device, monkeypatch, free, **options)
    assert streamed == whole
    hidden = open_checkpoint(model).config.hidden_size
    assert plan.streamed_bytes == (0 if device == "cpu" else 4 * 3 * LENGTH * hidden)
    assert ("of hidden states streamed to it" in plan.summary()) == (device != "cpu")


def passed(checkpoint, place, *, streamed, propagated):
    """Hessians of a text's inputs of a block, and its states after it."""
    decoder = Decoder(checkpoint, place=replace(open_place(place), batch_tokens=LENGTH))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (2, LENGTH))
    calibration = TextCalibration(decoder, tokens, streamed=streamed, propagated=propagated)
    found = []
    for group in calibration.stages(0, decoder.block(0), {}):
        for _, inputs in group:
            statistics = getattr(inputs, "own", inputs)
            found.append(to_host(statistics.hessian))
            found += [to_host(getattr(statistics, name)) for name in statistics.companions]
    following = decoder.block(1)
    calibration.skip(following, following)
    found += [to_host(statistics.hessian) for _, statistics in calibration.preview(1, following)]
    return found


@pytest.mark.parametrize(
    ("model_type", "propagated"), [("cohere", False), ("qwen2_moe", False), ("llama", True)]
)
def test_statistics_are_the_same_to_the_bit(tmp_path, backend, device, model_type, propagated):
    """Of attention beside the MLP, whose inputs stream too, of experts, and of two streams."""
    own = sizes(backend) | {"num_hidden_layers": 2}
    write = write_tiny_checkpoint if model_type == "llama" else write_described_checkpoint
    checkpoint = open_checkpoint(write(tmp_path, model_type, **own))
    whole = passed(checkpoint, device, streamed=False, propagated=propagated)
    if backend.name == "numpy":  # from where nothing streams
        assert not Demand.of(Decoder(checkpoint), Settings(), ()).must_stream(1 << 40)
        return
    streamed = passed(checkpoint, device, streamed=True, propagated=propagated)
    assert len(streamed) == len(whole) > 4
    for expected, actual in zip(whole, streamed, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("propagated", [False, True])
def test_one_part_of_the_activations_is_held(tmp_path, monkeypatch, propagated):
    """Whatever is known by its shape only comes once: the plan counts it once."""
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path))
    place = replace(open_place("cpu"), batch_tokens=LENGTH, held_bytes=0)
    decoder = Decoder(checkpoint, place=place)
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (3, LENGTH))
    calibration = TextCalibration(decoder, tokens, propagated=propagated)
    made = []

    def alive():
        return sum(reference() is not None for reference in made)

    def inner(own, x, original=MLP.inner):
        assert alive() <= propagated  # the other stream's
        found = original(own, x)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(MLP, "inner", inner)
    for group in calibration.stages(0, decoder.block(0), {}):
        assert alive() == 0, group
    assert len(made) == 6 * (1 + propagated)


def test_a_run_out_of_memory_says_what_would_fit(tmp_path, backend, device, text, monkeypatch):
    model = write_tiny_checkpoint(tmp_path / "model", **sizes(backend))
    options = {"group_size": 8, "samples": 2, "sequence_length": 8, "device": device}
    options |= {"target": "layerwise"}
    if backend.name == "cudasim":  # whose trial of GPTQ would take a minute
        options |= {"method": "rtn", "ranges": "weighted"}

    def full(*_):
        raise MemoryError("GPU 0: 100 bytes are needed, 10 are free of what it has (1,000)")

    monkeypatch.setattr(blocks, "_quantize_block", full)
    with pytest.raises(MemoryError) as raised:
        quantize(model, tmp_path / "out", text=text, **options)
    message = str(raised.value)
    assert "(1,000): the plan was " in message
    assert message.endswith(
        (": --samples 1 would fit", ": --device cpu would fit", ": no option would fit")
    )
    assert "\n" not in message
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("out")] == []
    assert raised.value.__context__ is None


def test_parts_on_the_device_are_the_arrays_themselves():
    arrays = [np.zeros((2, 3, 4), np.float32), np.ones((1, 3, 4), np.float32)]
    parts = Parts(arrays)
    for part in parts.changed():
        part += 1
    assert parts.tokens == 9
    assert [float(part.max()) for part in parts] == [1, 2]
    for part in parts.copied().changed():
        part += 1
    assert arrays[0].max() == 1
