"""Calibration text that the model writes itself."""

import math
import tracemalloc
from dataclasses import replace

import naive
import numpy as np
import pytest
from models.tiny import TEXT, write_tiny_checkpoint
from quantizer.runs import run

from numbacalib.models import Decoder, open_checkpoint
from numbacalib.models.layer_tensors import linear_shapes
from numbacalib.models.sampling import Held, HeldWeights, Room, Writer, held_within
from numbacalib.quantizer import Settings, own_text, pipeline, quantize
from numbacalib.quantizer.memory import Demand
from numbacalib.quantizer.own_text import OwnText, own_sequences, own_text_of
from numbacalib.quantizer.text import read_sequences

PLENTY = Room(1 << 30)


@pytest.fixture
def decoder(model):
    return Decoder(open_checkpoint(model))


def tokens_of(decoder, text, samples=6, length=40):
    return read_sequences(decoder.checkpoint, [text], length, samples)


def test_tokens_are_drawn_from_the_prediction_after_the_last(decoder):
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (5, 7))
    held = held_within(decoder, 5, 7, 10, PLENTY)
    writer = Writer(HeldWeights(decoder, held), tokens)
    for seed in (3, 4, 5):
        last = decoder.logits(decoder.forward(writer.tokens))[:, -1]
        writer.step(seed)
        np.testing.assert_array_equal(writer.tokens[:, -1], naive.draw(last, seed))


@pytest.fixture
def of_three_blocks(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "three", num_hidden_layers=3)
    return Decoder(open_checkpoint(model))


def bytes_of(decoder):
    """Bytes of a piece's keys, values and attention, of the head, and of a block's weights."""
    config = decoder.config
    held = (3 + 1) * 2 * config.num_kv_heads * config.head_dim
    queries_and_contexts = 2 * config.num_heads * config.head_dim
    weights = sum(map(math.prod, linear_shapes(config, 0).values()))
    head = config.vocab_size * config.hidden_size
    return 4 * (held + queries_and_contexts) * own_text.PIECE, 4 * head, 4 * weights


def test_less_memory_holds_less_and_writes_the_same(of_three_blocks, text):
    decoder, tokens = of_three_blocks, tokens_of(of_three_blocks, text)
    keys, head, block = bytes_of(decoder)
    pieces = math.ceil(7 * 40 / own_text.PIECE)
    assert pieces == 18
    weights = head + 3 * block
    expected = {
        1 << 30: Held(18, keys=True, head=True, blocks=3),
        18 * keys + weights: Held(18, keys=True, head=True, blocks=3),
        # in parts, of which the first reads what all of them need
        18 * keys + weights - 1: Held(9, keys=True, head=True, blocks=3),
        9 * keys + weights - 1: Held(6, keys=True, head=True, blocks=3),
        5 * keys + weights: Held(5, keys=True, head=True, blocks=3),
        # in one part, since each reads the blocks again
        5 * keys + weights - 1: Held(18, keys=True, head=True, blocks=0),
        18 * keys: Held(18, keys=True, head=False, blocks=0),
        18 * keys - 1: Held(9, keys=True, head=True, blocks=0),
        6 * keys: Held(6, keys=True, head=False, blocks=0),
        5 * keys: Held(5, keys=True, head=False, blocks=0),
        5 * keys - 1: Held(18, keys=False, head=True, blocks=0),
        0: Held(18, keys=False, head=False, blocks=0),
    }
    first = OwnText(tokens, 7, PLENTY).added(decoder)
    for size, held in expected.items():
        assert held_within(decoder, pieces, 1, own_text.PIECE, Room(size)) == held
        np.testing.assert_array_equal(OwnText(tokens, 7, Room(size)).added(decoder), first)


def test_what_runs_takes_its_own_memory(of_three_blocks):
    decoder = of_three_blocks
    keys, head, block = bytes_of(decoder)
    everything = 18 * keys + head + 3 * block
    # with keys two tokens of a sequence run at once in the beginning, without them all
    room = Room(everything + 18 * (2 * (500 + 20) + 7), token=500, state=20, score=7)
    lengths = 2, own_text.PIECE
    whole, halves = (Held(count, keys=True, head=True, blocks=3) for count in (18, 9))
    assert held_within(decoder, 18, *lengths, room) == whole
    assert held_within(decoder, 18, *lengths, room._replace(total=room.total - 1)) == halves
    scored = replace(decoder.place, score_rows=4)
    few = Decoder(decoder.checkpoint, place=scored)
    assert held_within(few, 18, *lengths, room._replace(total=room.total - 14 * 7)) == whole
    little = room._replace(total=5 * (keys + 2 * 520) + 5 * 7 - 1)
    assert held_within(decoder, 18, *lengths, little) == Held(18, keys=False, head=False, blocks=0)


@pytest.mark.parametrize("streamed", [False, True])
def test_writing_takes_no_more_memory_than_blocks_do_later(tmp_path, streamed):
    model = write_tiny_checkpoint(tmp_path / "deep", num_hidden_layers=16)
    decoder = Decoder(open_checkpoint(model))
    tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (96, 128), np.int32)
    demand = Demand.of(decoder, Settings(), ())
    own = own_text_of(tokens, 32, demand, streamed=streamed)
    assert own.room.total > 0
    own.added(decoder)  # compiled
    tracemalloc.start()
    own.added(decoder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < demand.working_bytes(128 * 128, streamed=streamed)


def test_the_work_counts_what_is_drawn_passed_and_read(of_three_blocks, text):
    decoder, tokens = of_three_blocks, tokens_of(of_three_blocks, text)
    keys, head, block = bytes_of(decoder)
    steps = own_text.PIECE - 1
    drawn = 18 * steps
    expected = {
        1 << 30: (drawn, drawn, 3),
        6 * keys: (drawn, drawn, 3 * 3 * steps),
        5 * keys + head + 3 * block: (drawn, drawn, 3),
        0: (drawn, drawn * own_text.PIECE // 2, 3 * steps),
    }
    for size, work in expected.items():
        assert OwnText(tokens, 7, Room(size)).work(decoder) == work


def test_own_sequences_stand_evenly_between_those_of_the_text(decoder, text):
    tokens = tokens_of(decoder, text)
    found = OwnText(tokens, 2, PLENTY).added(decoder)
    assert found.shape == (8, 40)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.delete(found, [0, 4], 0), tokens)
    own = found[[0, 4]].ravel()
    for first in range(0, own.size - own_text.PIECE, own_text.PIECE):
        assert own[first] in tokens
    assert not set(map(tuple, own.reshape(-1, 8))) & set(map(tuple, tokens.reshape(-1, 8)))


def test_special_tokens_begin_own_sequences_too(tmp_path, text):
    from tokenizers.processors import TemplateProcessing

    model = write_tiny_checkpoint(tmp_path / "prefixed")
    checkpoint = open_checkpoint(model)
    tokenizer = checkpoint.tokenizer
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    decoder = Decoder(open_checkpoint(model))
    found = OwnText(tokens_of(decoder, text), 2, PLENTY).added(decoder)
    assert (found[:, 0] == 0).all()


def test_a_long_text_is_repeated(decoder, text, monkeypatch):
    monkeypatch.setattr(own_text, "MOST", 2 * own_text.PIECE)
    found = OwnText(tokens_of(decoder, text), 3, PLENTY).added(decoder)
    own = found[[0, 3, 6]].ravel()
    np.testing.assert_array_equal(own, np.resize(own[: 2 * own_text.PIECE], own.size))


def test_sequences_shorter_than_a_piece(decoder, text):
    found = OwnText(tokens_of(decoder, text, length=5), 2, PLENTY).added(decoder)
    assert found.shape == (8, 5)


@pytest.mark.parametrize(
    ("share", "samples", "count"),
    [(0, 64, 0), (0.25, 64, 16), (0.25, 3, 0), (1, 4, 3), (0.9, 1, 0)],
)
def test_a_sequence_at_least_is_of_the_text(share, samples, count):
    assert own_sequences(share, samples) == count


def test_a_run_takes_less_of_the_text_and_as_many_tokens(tmp_path, model):
    """Of 8 sequences two are the model's, so that a text of 6 suffices."""
    file = tmp_path / "short.txt"
    checkpoint = open_checkpoint(model)
    file.write_text(TEXT, encoding="utf-8")
    length = len(checkpoint.tokenizer.encode(TEXT).ids) // 6
    options = {"text": [file], "samples": 8, "sequence_length": length, "group_size": 32}
    with pytest.raises(ValueError, match="text: expected at least"):
        quantize(model, tmp_path / "none", own_text=0, **options)
    report = quantize(model, tmp_path / "own", **options)
    assert {layer.tokens for layer in report.layers} == {8 * length}
    assert report.settings["own_text"] == 0.25
    again = quantize(model, tmp_path / "again", **options)
    assert [layer.loss for layer in report.layers] == [layer.loss for layer in again.layers]


def test_a_share_that_is_none_is_refused(tmp_path, text, model, capsys):
    command = ["quantize", model, "--text", text, "--output", tmp_path / "out", "--own-text", "1.5"]
    assert run(*command) == 2
    assert "own_text: expected 0 to 1, got 1.5" in capsys.readouterr().err


def test_the_plan_comes_before_the_model_writes(tmp_path, text, model, monkeypatch):
    """Planned, and then taken, with its own phase; a plan alone writes nothing."""
    plans, seen = [], []
    written = OwnText._written
    monkeypatch.setattr(
        OwnText, "_written", lambda *given: seen.append(len(plans)) or written(*given)
    )
    options = {"text": [text], "samples": 8, "sequence_length": 32, "group_size": 32}
    report = quantize(model, tmp_path / "out", planned=plans.append, **options)
    assert seen == [1]
    assert plans[0].seconds["own text"] >= 0
    assert list(report.seconds)[:3] == ["reading", "planning", "own text"]
    command = ["quantize", model, "--text", text, "--plan", "--output", tmp_path / "planned"]
    assert run(*command, "--samples", 8, "--sequence-length", 32, "--group-size", 32) == 0
    assert seen == [1]


def test_a_run_whose_blocks_are_all_kept_writes_no_text(tmp_path, text, model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    options = {"text": [text], "samples": 8, "sequence_length": 32, "group_size": 32}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write_layers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, tmp_path / "out", **options)
    monkeypatch.setattr(OwnText, "_written", interrupt)
    report = quantize(model, tmp_path / "out", **options)
    assert report.resumed_blocks == 2
    assert "own text" not in report.seconds
