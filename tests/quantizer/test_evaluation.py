"""Evaluation of what is not finite, and of sequences that are too long."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
from models.tiny import TEXT, write_tiny_checkpoint
from safetensors.numpy import load_file, save_file

from numbacalib.cli import main
from numbacalib.models import open_place
from numbacalib.quantizer import Evaluation, Settings, collect, evaluate, quantize
from numbacalib.quantizer.evaluation import Subject, measure, measure_texts


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 4, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("model.embed_tokens.weight", np.nan, "model.embed_tokens.weight"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            np.inf,
            "model.layers.0.self_attn.q_proj.weight",
        ),
        ("model.layers.1.mlp.down_proj.weight", np.nan, "model.layers.1.mlp.down_proj.weight"),
        ("model.layers.1.mlp.up_proj.weight", 1e38, "model.layers.1"),
        ("model.norm.weight", np.nan, "model.norm.weight"),
        ("lm_head.weight", 1e38, "the final norm and head"),
    ],
)
def test_the_first_that_is_not_finite_is_named(
    tmp_path: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: float,
    where: str,
) -> None:
    model = write_tiny_checkpoint(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name][...] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError, match=f"^{model}: {where}: expected finite values, got"):
        evaluate(model, [text], sequence_length=32)
    assert main(["evaluate", str(model), "--text", str(text), "--sequence-length", "32"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(f"numbacalib: error: {model}: {where}: ")


def test_a_perplexity_beyond_float64_is_infinite() -> None:
    assert Evaluation(709.7, 1).perplexity == math.exp(709.7)
    assert Evaluation(709.8, 1).perplexity == math.inf
    assert Evaluation(1e30, 1).perplexity == math.inf


def test_a_perplexity_beyond_float64_exits_with_1(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_checkpoint(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] *= np.float32(1e6)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert evaluate(model, [text], sequence_length=32).loss > 710
    assert main(["evaluate", str(model), "--text", str(text), "--sequence-length", "32"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "perplexity overflows float64, the loss is" in printed.err.splitlines()[-1]


def test_sequences_longer_than_the_models_positions_warn_once(
    tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", max_position_embeddings=32)

    def warnings(length: int) -> list[list[str]]:
        settings = Settings(samples=2, sequence_length=length, group_size=32)
        found = []
        for run in (
            lambda: evaluate(model, [text], sequence_length=length),
            lambda: collect(
                model,
                tmp_path / f"statistics-{length}",
                text=[text],
                samples=2,
                sequence_length=length,
            ),
            lambda: quantize(model, tmp_path / f"out-{length}", text=[text], settings=settings),
        ):
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="numbacalib"):
                run()
            found.append([line for line in caplog.messages if "sequence_length" in line])
        return found

    message = (
        f"sequence_length 33 is longer than max_position_embeddings, 32, of {model}: "
        "the model was not trained for such positions"
    )
    assert warnings(33) == [[message]] * 3
    assert warnings(32) == [[]] * 3


def test_texts_of_one_pass_are_measured_as_each_alone(tmp_path):
    place = open_place("cpu")
    paths = [write_tiny_checkpoint(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    subject, original = (Subject.opened(path, place) for path in paths)
    tokens = np.random.default_rng(0).integers(0, subject.decoder.config.vocab_size, (5, 16))
    texts = [tokens[:2], tokens[2:]]
    for found, text in zip(measure_texts(texts, subject, original), texts, strict=True):
        alone = measure(text, subject, original)
        assert found.tokens == alone.tokens == 15 * len(text)
        # products of other numbers of rows add up in another order
        assert found.loss == pytest.approx(alone.loss, rel=1e-5)
        assert found.kl == pytest.approx(alone.kl, rel=1e-3)
        assert found.excess_error == pytest.approx(alone.excess_error, rel=1e-3)
