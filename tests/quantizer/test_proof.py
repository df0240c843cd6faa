"""The proof before an output takes its name, `verify`, and the divergence that both measure."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from models.tiny import write_tiny_checkpoint
from quantizer.runs import run
from safetensors.numpy import load_file, save_file

from numbacalib.formats import FORMATS
from numbacalib.formats.compressed_tensors import CompressedTensors
from numbacalib.formats.gguf_layers import BlockLayers
from numbacalib.formats.safetensors_format import PackedLayers
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer import ProofError, Settings, evaluate, job, pipeline, quantize, verify
from numbacalib.quantizer.divergence import compare

SETTINGS = Settings(samples=4, sequence_length=32, group_size=32)


def naive_kl(p, q):
    """From the definition, in float64."""
    p, q = (np.exp(each.astype(np.float64)) for each in (p, q))
    p, q = (each / each.sum(-1, keepdims=True) for each in (p, q))
    return (p * np.log(p / q)).sum(-1)


def test_the_divergence_is_its_definition(tmp_path, monkeypatch):
    """Over several tiles of the vocabulary and of the tokens."""
    from numbacalib.models import decoder as module

    monkeypatch.setattr(module, "VOCABULARY", 100)
    decoders = [
        Decoder(open_checkpoint(write_tiny_checkpoint(tmp_path / str(seed), seed=seed)))
        for seed in (0, 1)
    ]
    tokens = np.random.default_rng(0).integers(0, 320, (3, 100))
    states = [decoder.forward(tokens) for decoder in decoders]
    own, its, found = compare(decoders[0], states[0], decoders[1], states[1], tokens)
    logits = [decoder.logits(state) for decoder, state in zip(decoders, states, strict=True)]
    np.testing.assert_allclose(found, naive_kl(*logits)[:, :-1], rtol=1e-4)
    assert found.shape == (3, 99)
    for decoder, state, losses in zip(decoders, states, (its, own), strict=True):
        np.testing.assert_array_equal(losses, decoder.token_losses(state, tokens))
    same = compare(decoders[0], states[0], decoders[0], states[0], tokens)
    np.testing.assert_allclose(same[2], 0, atol=1e-6)


def test_evaluation_has_errors_and_the_divergence(tmp_path, model, text):
    quantize(model, tmp_path / "out", text=[text], settings=SETTINGS)
    found = evaluate(tmp_path / "out", [text], sequence_length=32, against=model)
    plain = evaluate(model, [text], sequence_length=32)
    assert found.original_loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.loss == evaluate(tmp_path / "out", [text], sequence_length=32).loss
    assert 0 < found.kl < 0.5
    assert 0 < found.kl_error < found.kl
    assert evaluate(model, [text], sequence_length=32, samples=1).loss_error is None


def test_the_report_has_the_proof(tmp_path, model, text):
    report = quantize(model, tmp_path / "out", text=[text], settings=SETTINGS)
    (proof,) = report.proofs
    assert (proof.quantized, proof.copied, proof.changed) == (14, 7, ())
    assert proof.evaluation.tokens == 31 * 32  # 1024 tokens of what calibration left
    assert 0 < proof.evaluation.kl < 0.5
    scaled = quantize(
        model,
        tmp_path / "scaled",
        text=[text],
        held_out=[text],
        samples=4,
        sequence_length=32,
        group_size=32,
        channel_scales="awq",
    )
    assert "model.layers.0.input_layernorm.weight" in scaled.proofs[0].changed
    assert scaled.proofs[0].evaluation.tokens == 4 * 31


def test_without_a_text_nothing_is_evaluated(tmp_path, model):
    report = quantize(model, tmp_path / "out", method="rtn", group_size=32)
    assert report.proofs[0].evaluation is None


@pytest.mark.parametrize(
    ("form", "layers", "count"),
    [("compressed-tensors", PackedLayers, 14), ("gguf:Q4_K_M", BlockLayers, 15)],
)
def test_a_proof_reads_each_layer_once(tmp_path, monkeypatch, form, layers, count):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16", **sizes)
    read, names = layers.__getitem__, []
    monkeypatch.setattr(
        layers, "__getitem__", lambda own, name: names.append(name) or read(own, name)
    )
    quantize(model, tmp_path / "out", method="rtn", formats=[form])
    assert len(names) == len(set(names)) == count


def test_what_is_left_out_is_said_with_the_reason(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (proof,) = quantize(model, tmp_path / "out", method="rtn", group_size=32).proofs
    assert set(proof.dropped) == {
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    assert "tied" in proof.dropped["lm_head.weight"]


def spoil(monkeypatch, part):
    """Let the writer store one layer's tensor with one bit changed."""
    real = CompressedTensors.pack

    def pack(self, quantized):
        tensors = real(self, quantized)
        tensors[part] = tensors[part].copy()
        tensors[part].reshape(-1).view(np.uint8)[0] ^= 1
        return tensors

    monkeypatch.setattr(CompressedTensors, "pack", pack)


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point"])
def test_a_bit_that_was_written_wrong_is_found(tmp_path, model, text, capsys, monkeypatch, part):
    command = ["quantize", model, "--text", text, "--samples", 4, "--sequence-length", 32]
    command += ["--group-size", 32, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        spoil(patch, part)
        assert run(*command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "model.layers.0.self_attn.q_proj: other codes or scales than were chosen" in error
    (kept,) = tmp_path.glob("out.failed-*")
    assert f"what was written is kept in {kept}" in error
    assert (kept / "config.json").is_file()
    assert not (tmp_path / "out").exists()
    # the blocks are kept: without the fault the same command comes to its end, and leaves the failed one
    monkeypatch.setattr("numbacalib.quantizer.blocks.quantize_group", None)
    assert run(*command) == 0
    assert verify(tmp_path / "out", against=model).quantized == 14
    assert kept.exists()


def test_a_copied_tensor_that_differs_is_found(tmp_path, model, monkeypatch):
    from numbacalib.formats.safetensors_writer import SafetensorsWriter

    real = SafetensorsWriter.add_stored

    def add_stored(self, name, tensor):
        if name == "model.norm.weight":
            tensor = tensor._replace(data=tensor.data ^ 1)
        real(self, name, tensor)

    monkeypatch.setattr(SafetensorsWriter, "add_stored", add_stored)
    with pytest.raises(
        ProofError, match=r"model\.norm\.weight: other values than were to be written"
    ):
        quantize(model, tmp_path / "out", method="rtn", group_size=32)


def test_a_kl_beyond_what_may_be_keeps_the_output_by_another_name(tmp_path, model, text, capsys):
    command = ["quantize", model, "--text", text, "--samples", 4, "--sequence-length", 32]
    command += ["--group-size", 32, "--bits", 2, "--output", tmp_path / "out"]
    assert run(*command, "--max-kl", 1e-6) == 1
    assert "expected a KL to the original of at most 1e-06 nats a token, got 0." in (
        capsys.readouterr().err
    )
    assert len(list(tmp_path.glob("out.failed-*"))) == 1
    assert run(*command, "--max-kl", 10) == 0
    assert (tmp_path / "out").is_dir()


def test_a_kl_needs_a_text(tmp_path, model, capsys):
    command = ["quantize", model, "--method", "rtn", "--group-size", 32, "--max-kl", 1]
    assert run(*command, "--output", tmp_path / "out") == 2
    assert "max_kl: expected a held-out text" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


OF_FP4 = ("nvfp4", "mxfp4", "mlx:nvfp4", "mlx:mxfp4")


def grouped(formats):
    """Groups of 32, where the format has none of its own."""
    return {} if any(FORMATS[name].own_grid for name in formats) else {"group_size": 32}


@pytest.mark.parametrize(
    ("formats", "settings"),
    [
        (["gptq"], {"symmetric": True}),
        (["gptq", "compressed-tensors"], {"symmetric": True}),
        (["awq"], {}),
        (["mlx"], {}),
        *(([name], {}) for name in OF_FP4),
    ],
    ids=str,
)
def test_every_format_is_proved(tmp_path, text, formats, settings):
    model = write_tiny_checkpoint(tmp_path / "model", "llama", dtype="float16")
    options = grouped(formats) | {"samples": 4, "sequence_length": 32, "formats": formats}
    report = quantize(model, tmp_path / "out", text=[text], **options, **settings)
    assert [proof.quantized for proof in report.proofs] == [14] * len(formats)
    assert len({proof.evaluation.loss for proof in report.proofs}) == 1


def test_gguf_files_are_proved_and_verified(tmp_path, text):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    model = write_tiny_checkpoint(tmp_path / "model", dtype="float16", **sizes)
    options = {"samples": 4, "sequence_length": 32, "formats": ["gguf:Q4_K_M"]}
    (proof,) = quantize(model, tmp_path / "out", text=[text], **options).proofs
    assert proof.quantized == 15  # the head, too
    assert proof.rounded == ("model.embed_tokens.weight",)
    assert proof.copied == 5
    assert proof.evaluation.kl > 0
    found = verify(tmp_path / "out", against=model, text=[text], sequence_length=32)
    assert (found.quantized, found.copied, found.changed) == (16, 5, ())


# verify


def test_verify_prints_what_it_found(tmp_path, model, text, capsys):
    quantize(model, tmp_path / "out", text=[text], settings=SETTINGS)
    command = ["verify", tmp_path / "out", "--against", model, "--text", text]
    command += ["--sequence-length", 32]
    assert run(*command, "--max-kl", 1) == 0
    printed = capsys.readouterr().out
    assert "14 quantized layers are read" in printed
    assert "7 tensors are the original's, 0 are changed" in printed
    assert "KL to the original" in printed
    assert run(*command, "--max-kl", 1e-9) == 1
    assert run("verify", model) == 2
    assert "expected a quantized checkpoint, got a plain one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("compressed-tensors", {}),
        ("gptq", {"symmetric": True}),
        ("gptq_v2", {}),
        ("awq", {}),
        ("mlx", {}),
        *((name, {}) for name in OF_FP4),
    ],
)
def test_every_format_is_verified(tmp_path, text, capsys, form, settings):
    model = write_tiny_checkpoint(tmp_path / "model", "llama", dtype="float16")
    settings = settings | grouped([form])
    quantize(model, tmp_path / "out", method="rtn", formats=[form], **settings)
    command = ["verify", tmp_path / "out", "--against", model, "--text", text]
    command += ["--sequence-length", 32, "--samples", 4, "--max-kl"]
    assert run(*command, 1) == 0
    assert "14 quantized layers are read" in capsys.readouterr().out
    assert run(*command, 1e-9) == 1
    assert "expected a KL to the original of at most 1e-09" in capsys.readouterr().err
    assert (tmp_path / "out").is_dir()  # what others wrote is never touched


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_verify_finds_what_is_missing_or_changed(tmp_path, model, text):
    quantize(model, tmp_path / "out", method="rtn", group_size=32)
    changed = shutil.copytree(tmp_path / "out", tmp_path / "changed")
    edit(changed, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 3))
    assert verify(changed, against=model).changed == ("model.norm.weight",)
    edit(changed, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ProofError, match=r"lm_head\.weight: missing"):
        verify(changed, against=model)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    edit(changed, lambda tensors: tensors[name].__setitem__((0, 0), np.inf))
    with pytest.raises(ProofError, match=r"layers\.1\.mlp\.up_proj: weights that are not finite"):
        verify(changed)


def test_evaluate_prints_json(tmp_path, model, text, capsys):
    command = ["evaluate", model, "--text", text, "--sequence-length", 32, "--against", model]
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["loss_error"] > 0
    assert found["tokens"] % 31 == 0


def test_models_of_other_vocabularies_are_not_compared(tmp_path, model, text):
    other = write_tiny_checkpoint(tmp_path / "other", vocab_size=330)
    with pytest.raises(ValueError, match="expected the 320 tokens of .*model, got 330"):
        evaluate(model, [text], sequence_length=32, against=other)


def test_held_out_sequences_are_others_than_those_of_calibration(
    tmp_path, model, text, monkeypatch
):
    seen = {}
    real = pipeline.prove

    def prove(source, kept, form, path, held_out, *rest):
        seen["held_out"] = held_out
        return real(source, kept, form, path, held_out, *rest)

    monkeypatch.setattr(pipeline, "prove", prove)
    real_calibration = job.TextCalibration

    def calibration(decoder, tokens, **options):
        seen["tokens"] = tokens
        return real_calibration(decoder, tokens, **options)

    monkeypatch.setattr(job, "TextCalibration", calibration)
    text.write_text("".join(f"{number} " for number in range(3000)))
    quantize(model, tmp_path / "out", text=[text], settings=SETTINGS)
    calibrated = {sequence.tobytes() for sequence in seen["tokens"]}
    assert len(seen["held_out"]) == 32
    assert not calibrated & {sequence.tobytes() for sequence in seen["held_out"]}
