"""What a run's GPU kernels are compiled by ahead: the run's own functions, in processes of their own."""

import pytest
from models.tiny import write_tiny_checkpoint

from numbacalib.models import HOST, Decoder, open_checkpoint, open_place
from numbacalib.quantizer import Settings, ahead

SETTINGS = Settings(bits=4, group_size=8, sequence_length=8)
SMALLEST = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}


@pytest.fixture
def model(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model", **SMALLEST)


@pytest.mark.parametrize("part", ahead._PARTS)
def test_each_part_runs_on_a_block(backend, model, part):
    place = open_place("cpu" if backend.name == "numpy" else "cuda")
    decoder = Decoder(open_checkpoint(model), place=place)
    ahead._PARTS[part](decoder, decoder.block(0), SETTINGS)


def test_a_process_does_what_it_is_sent(model):
    process = ahead._started(ahead._Order(("columns", "mlp"), str(model), SETTINGS, "cpu"))
    assert process.wait(timeout=300) == 0
    assert ahead._started(ahead._Order(("mlp",), "absent", SETTINGS, "cpu")).wait(300) != 0


def test_every_part_has_a_process():
    parts = [part for parts in ahead._PROCESSES for part in parts]
    assert sorted(parts) == sorted(ahead._PARTS)


def test_the_host_compiles_nothing_ahead(monkeypatch, model):
    monkeypatch.setattr(ahead, "_started", None)
    with ahead.compiled_ahead(open_checkpoint(model), SETTINGS, HOST):
        pass
