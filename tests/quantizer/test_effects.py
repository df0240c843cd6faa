"""What a layer's errors do to the head's inputs, against a model in which that layer alone is rounded."""

from pathlib import Path

import numpy as np
import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.methods import proxy_loss, rtn
from numbacalib.models import Decoder, open_checkpoint
from numbacalib.quantizer.effects import LENGTH, ROUGH_BITS, Effects
from numbacalib.quantizer.stages import run_stages
from numbacalib.quantizer.text import read_sequences

GRID = {"group_size": 16, "symmetric": True}


@pytest.fixture
def model(tmp_path: Path) -> tuple[Decoder, np.ndarray]:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "model"))
    return Decoder(checkpoint), read_sequences(checkpoint, [tmp_path / "text.txt"], 32, 2)


def found_effects(decoder: Decoder, tokens: np.ndarray, *, only: str = "") -> Effects:
    effects = Effects(decoder, tokens)
    hidden = decoder.states(tokens)
    for index in range(decoder.config.num_layers):
        block = decoder.block(index)
        for stage, statistics in run_stages(block, decoder, hidden):
            own = {f"{block.name}.{kind}": block.linears[kind] for kind in stage}
            own = {name: weight for name, weight in own.items() if only in name}
            effects.add_layers(block, own, statistics.hessian, **GRID)
        effects.run(block)
    return effects


def test_effects_are_those_of_each_layer_rounded_alone(model):
    decoder, tokens = model
    found = found_effects(decoder, tokens).by_layer()
    assert tokens.shape[1] <= LENGTH
    assert len(found) == 7 * decoder.config.num_layers
    for index in range(decoder.config.num_layers):
        hidden = decoder.states(tokens)
        for before in range(index):
            decoder.block(before).forward_parts(hidden)
        block = decoder.block(index)
        for stage, statistics in run_stages(block.copied(), decoder, hidden.copied()):
            for kind in stage:
                quantized = rtn(block.linears[kind], bits=ROUGH_BITS, **GRID)
                changed = block.copied()
                changed.linears[kind] = quantized.dequantize(block.dtype)
                squares = []
                for one, other in ((block, hidden.copied()), (changed, hidden.copied())):
                    one.forward_parts(other)
                    for after in range(index + 1, decoder.config.num_layers):
                        decoder.block(after).forward_parts(other)
                    squares.append(np.concatenate([decoder.head_inputs(part) for part in other]))
                change = float(((squares[1] - squares[0]) ** 2).mean(dtype=np.float64))
                loss = proxy_loss(block.linears[kind], quantized, statistics.hessian)
                # products of other numbers of rows add up in another order
                assert found[f"{block.name}.{kind}"] == pytest.approx(change / loss, rel=1e-3)


def test_layers_that_are_skipped_have_no_stream(model):
    decoder, tokens = model
    found = found_effects(decoder, tokens, only="mlp").by_layer()
    assert sorted({name.split(".")[3] for name in found}) == ["mlp"]
    everything = found_effects(decoder, tokens).by_layer()
    for name, effect in found.items():
        assert effect == pytest.approx(everything[name], rel=1e-3)


def test_a_layer_that_loses_nothing_has_no_effect(model):
    decoder, tokens = model
    effects = Effects(decoder, tokens)
    block = decoder.block(0)
    name = "mlp.down_proj"
    weight = np.zeros_like(block.linears[name])
    hessian = np.eye(weight.shape[1], dtype=np.float32)
    effects.add_layers(block, {f"{block.name}.{name}": weight}, hessian, **GRID)
    effects.run(block)
    assert effects.by_layer() == {f"{block.name}.{name}": 0.0}
