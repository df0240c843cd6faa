"""The whole model on every device: the same pipeline, the same files."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from models.described import DESCRIBED, write_described_checkpoint
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib import runtime
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.methods import awq_scales
from numbacalib.models import HOST, Decoder, open_checkpoint, open_place
from numbacalib.models import place as places
from numbacalib.models.sampling import HeldWeights, Room, Writer, held_within
from numbacalib.ops.matrix import to_host
from numbacalib.quantizer import Settings, blocks, collect, evaluate, quantize

DEVICES = {"numpy": "cpu", "cudasim": "cuda", "cuda": "cuda"}


@pytest.fixture
def device(backend):
    return DEVICES[backend.name]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return [tmp_path / "text.txt"]


SMALLEST = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""What the simulator takes seconds for."""


def write_model(folder, backend, *given, **options):
    sizes = SMALLEST if backend.name == "cudasim" else {}
    return write_tiny_checkpoint(folder, *given, **sizes, **options)


def test_a_model_is_quantized_as_on_the_host(tmp_path, backend, device, text):
    model = write_model(tmp_path / "model", backend)
    # not at the original model's outputs: 16 tokens leave those targets to what rounding makes of them
    settings = Settings(
        bits=4, group_size=8, samples=2, sequence_length=8, target="layerwise", own_text=0.5
    )
    reports = {}
    for place in {"cpu": 0, device: 0}:
        output = tmp_path / f"on-{place}"
        report = quantize(model, output, text=text, settings=settings, device=place)
        reports[place] = report.layers
    for expected, actual in zip(reports["cpu"], reports[device], strict=True):
        assert actual.name == expected.name
        assert actual.loss == pytest.approx(expected.loss, rel=1e-3)
    ours, theirs = (
        CompressedTensors().layers(open_checkpoint(tmp_path / f"on-{p}")) for p in ("cpu", device)
    )
    assert set(ours) == set(theirs)
    first = next(iter(ours))
    assert (ours[first].codes != theirs[first].codes).mean() < 0.002
    losses = [
        evaluate(tmp_path / f"on-{p}", text, sequence_length=8, device=p).loss
        for p in ("cpu", device)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("model_type", DESCRIBED)
def test_losses_of_other_architectures(tmp_path, backend, device, model_type):
    sizes = SMALLEST | DESCRIBED[model_type] if backend.name == "cudasim" else {}
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, model_type, **sizes))
    tokens = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (1, 5))
    on_host = Decoder(checkpoint).loss(tokens)
    assert Decoder(checkpoint, place=open_place(device)).loss(tokens) == pytest.approx(
        on_host, rel=1e-5
    )


@pytest.mark.parametrize(
    "model_type", ["gemma2", "gemma4_text", "cohere", "phi3", "deepseek_v3", "gpt2", "falcon"]
)
def test_channel_scales_are_folded_there(tmp_path, backend, device, model_type):
    """Into norms minus 1 and those of latents, past fused layers and what several layers share."""
    sizes = SMALLEST | DESCRIBED[model_type] if backend.name == "cudasim" else {}
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, model_type, **sizes))
    decoder = Decoder(checkpoint, place=open_place(device))
    rng = np.random.default_rng(1)
    hidden = to_host(decoder.embed(rng.integers(0, decoder.config.vocab_size, (1, 3))))
    for index in range(decoder.config.num_layers):
        block = decoder.block(index)
        before = to_host(block.forward(decoder.place.put(hidden.copy())))
        for stage in block.stages:
            if block.producer(stage) is not None:
                channels = block.linears[stage[0]].shape[1]
                scales = np.exp(0.3 * rng.normal(size=channels)).astype(np.float32)
                block.fold(stage, decoder.place.put(scales), np.dtype(np.float32))
        after = to_host(block.forward(decoder.place.put(hidden.copy())))
        error = 1e-5 * np.abs(before - hidden).max()
        np.testing.assert_allclose(after, before, rtol=0, atol=error)
        hidden = before


DENSE = dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size")) | {
    "enable_moe_block": False,
}


def test_channel_scales_lose_what_the_host_s_do(tmp_path, backend, device, text, monkeypatch):
    """From the same statistics: of two exponents that lose nearly the same, either may be chosen.

    All that comes after then differs, on one device, too, where weights move by a rounding.
    """
    searched = []

    def search(weights, hessian, magnitude, **options):
        options["points"] = 3
        found = awq_scales(weights, hessian, magnitude, **options)
        host = awq_scales([*map(to_host, weights)], *map(to_host, (hessian, magnitude)), **options)
        searched.append((found, host))
        return found

    monkeypatch.setattr(blocks, "awq_scales", search)
    sizes = SMALLEST | DESCRIBED["gemma4_text"] if backend.name == "cudasim" else {}
    model = write_described_checkpoint(tmp_path / "model", "gemma4_text", **sizes | DENSE)
    settings = Settings(
        method="rtn", group_size=8, samples=1, sequence_length=4, channel_scales="awq"
    )
    quantize(model, tmp_path / "out", text=text, settings=settings, device=device)
    assert searched
    for found, host in searched:
        assert found.identity_loss == pytest.approx(host.identity_loss, rel=1e-4)
        assert found.loss == pytest.approx(host.loss, rel=1e-3)


@pytest.mark.parametrize("model_type", ["qwen2_moe"])
def test_other_architectures_are_quantized_as_on_the_host(
    tmp_path, backend, device, text, model_type
):
    sizes = SMALLEST if backend.name == "cudasim" else {}
    model = write_described_checkpoint(tmp_path / "model", model_type, **sizes)
    settings = Settings(
        method="rtn", ranges="weighted", group_size=8, samples=1, sequence_length=8,
        channel_scales="awq",
    )  # fmt: skip
    reports = [
        quantize(model, tmp_path / f"on-{place}", text=text, settings=settings, device=place).layers
        for place in {"cpu": 0, device: 0}
    ]
    for expected, actual in zip(reports[0], reports[-1], strict=True):
        assert actual.loss == pytest.approx(expected.loss, rel=5e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_16_bit_models_are_of_their_dtype(tmp_path, backend, device, dtype):
    checkpoint = open_checkpoint(write_model(tmp_path, backend, "qwen3", dtype=dtype))
    decoder = Decoder(checkpoint, place=open_place(device))
    assert decoder.block(0).dtype == (np.float32 if device == "cpu" else np.dtype(dtype))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (4, 16))
    assert decoder.loss(tokens) == pytest.approx(Decoder(checkpoint).loss(tokens), rel=5e-3)


def test_statistics_are_collected_and_quantized_from(tmp_path, backend, device, text):
    model = write_model(tmp_path / "model", backend, "qwen3")
    collect(model, tmp_path / "statistics", text=text, samples=2, sequence_length=8, device=device)
    settings = Settings(method="rtn", bits=4, group_size=8, channel_scales="awq")
    for place in {"cpu", device}:
        report = quantize(
            model,
            tmp_path / f"on-{place}",
            statistics=tmp_path / "statistics",
            settings=settings,
            device=place,
        )
        assert all(layer.loss == layer.rtn_loss for layer in report.layers)


@pytest.mark.parametrize("held_bytes", [0, 1 << 30], ids=["read again", "held"])
def test_a_model_writes_the_same_text_as_on_the_host(tmp_path, backend, device, held_bytes):
    checkpoint = open_checkpoint(write_model(tmp_path / "model", backend))
    tokens = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (3, 2))
    found = {}
    for place in {"cpu", device}:
        decoder = Decoder(checkpoint, place=open_place(place))
        held = held_within(decoder, 3, 2, 5, Room(held_bytes))
        writer = Writer(HeldWeights(decoder, held), tokens)
        for seed in range(3):
            writer.step(seed)
        found[place] = writer.tokens
    np.testing.assert_array_equal(found[device], found["cpu"])


def test_a_propagated_target_is_as_on_the_host(tmp_path, backend, device, text):
    model = write_model(tmp_path / "model", backend, dtype="float32")
    samples = 2
    if backend.name != "cudasim":
        # a GPU rounds other sums: with fewer tokens than channels that would decide too many codes
        samples = 32
        words = np.random.default_rng(0).choice(TEXT.split(), 400)
        text[0].write_text(" ".join(words))
    settings = Settings(
        bits=3,
        group_size=8,
        samples=samples,
        sequence_length=8,
        target="propagated",
        refit=True,
        channel_scales="awq",
    )
    losses = {
        place: [
            layer.loss
            for layer in quantize(
                model, tmp_path / f"on-{place}", text=text, settings=settings, device=place
            ).layers
        ]
        for place in {"cpu", device}
    }
    assert losses[device] == pytest.approx(losses["cpu"], rel=5e-3)


def test_a_run_goes_on_to_the_same_bytes(tmp_path, backend, device, text, monkeypatch):
    """Its blocks come back from the host, and the text passes through them on the device."""
    sizes = SMALLEST if backend.name == "cudasim" else {}
    model = write_tiny_checkpoint(tmp_path / "model", **sizes | {"num_hidden_layers": 2})
    options = {"bits": 4, "group_size": 8, "samples": 2, "sequence_length": 8, "device": device}
    if backend.name == "cudasim":  # which would take minutes for the text
        options |= {"method": "rtn"}
    else:
        options |= {"text": text, "channel_scales": "awq", "target": "propagated"}
    quantize(model, tmp_path / "whole", **options)
    real = blocks.quantize_group

    def interrupted(job, block, *rest):
        if block.name == "model.layers.1":
            raise KeyboardInterrupt
        return real(job, block, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(blocks, "quantize_group", interrupted)
        quantize(model, tmp_path / "out", **options)
    assert quantize(model, tmp_path / "out", **options).resumed_blocks == 1
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1]


def test_names_of_devices():
    assert open_place("cpu") is HOST
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", ""):
        with pytest.raises(ValueError, match="^device: expected auto, cpu, cuda or cuda:N, got"):
            open_place(name)


@pytest.mark.parametrize("version", [12080, 13000, 13020])
def test_a_driver_that_is_too_old_is_one_line(monkeypatch, caplog, version):
    device = SimpleNamespace(driver_versions=lambda: (version, 13000), missing_packages=list)
    monkeypatch.setitem(sys.modules, "numbacalib.runtime.device", device)
    monkeypatch.setattr(runtime, "device", device, raising=False)
    for name, found in {"_missing_packages": [], "_device_count": 1, "_cuda": HOST}.items():
        monkeypatch.setattr(places, name, lambda *_, found=found: found)
    if version >= 13000:
        assert open_place("cuda") is open_place("auto") is HOST
        return
    expected = "expected a driver of CUDA 13.0 or later, found one of CUDA 12.8"
    with pytest.raises(ValueError, match=f"^device: {expected}$"):
        open_place("cuda")
    assert open_place("auto") is HOST
    assert caplog.messages == [f"running on the host: {expected}"]


def test_embedding_and_losses(tmp_path, device):
    decoder = Decoder(
        open_checkpoint(write_tiny_checkpoint(tmp_path, "qwen2")), place=open_place(device)
    )
    on_host = Decoder(open_checkpoint(tmp_path))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (2, 9))
    assert decoder.loss(tokens) == pytest.approx(on_host.loss(tokens), rel=1e-5)
