"""What a run's GPU kernels are compiled by ahead: the run's own functions, in processes of their own."""

import numpy as np
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


def test_what_the_host_does_with_layers_runs():
    ahead._storing(np.dtype(np.float32), SETTINGS)


def test_runs_compile_nothing_of_targets_and_own_text_without_these():
    every = list(ahead._PARTS.values())
    assert ahead._parts(Settings(target="propagated", own_text=0.25)) == every
    layerwise = Settings(target="layerwise", own_text=0.25)
    assert set(every) - set(ahead._parts(layerwise)) == {ahead._target}
    of_text = Settings(target="propagated", own_text=0.0)
    assert set(every) - set(ahead._parts(of_text)) == {ahead._writing}


def test_the_host_compiles_nothing_ahead(monkeypatch, model):
    monkeypatch.setattr(ahead, "_started", None)
    monkeypatch.setattr(ahead, "_has_device", lambda: True)
    with ahead.CompiledAhead(open_checkpoint(model), SETTINGS, "cpu") as processes:
        processes.begin(HOST)


def test_processes_that_are_not_needed_end(monkeypatch, model):
    """A run that was to take a device if there is one started them, and then took the host."""
    monkeypatch.setattr(ahead, "_has_device", lambda: True)
    monkeypatch.setattr(ahead, "_processors", lambda: ahead.LEAST_PROCESSORS)
    with ahead.CompiledAhead(open_checkpoint(model), SETTINGS, "auto") as processes:
        started = list(processes._processes)
        assert len(started) == ahead.LEAST_PROCESSORS * 3 // 4
        assert all(process.poll() is None for process in started)
        processes.begin(HOST)
        assert all(process.poll() is not None for process in started)
    opened = ahead.CompiledAhead(open_checkpoint(model), SETTINGS, "auto")
    started = list(opened._processes)
    with pytest.raises(ValueError, match="no such"), opened:
        raise ValueError("no such device")
    assert started
    assert all(process.poll() is not None for process in started)
