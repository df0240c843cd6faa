"""Mixtures of experts: the forward pass against definitions, and every layout of their tensors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import naive_moe
import numpy as np
import pytest
from models import naive_llama
from models.described import described_tensors, write_described_checkpoint
from models.tiny import assert_close, random_tokens
from safetensors.numpy import save_file

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.experts import ExpertsRun
from numbacalib.models.parts import Parts
from numbacalib.models.tensor_names import beside, is_decoders

ROUTINGS = {
    "qwen2_moe": {"experts": 2, "normalized": False},
    "glm4_moe": {
        "experts": 2,
        "scoring": "sigmoid",
        "factor": 1.5,
        "groups": 3,
        "kept_groups": 2,
        "group_best": 2,
    },
}


def mlp(weights: dict[str, Any], name: str) -> Any:
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))

    def run(token: Any) -> Any:
        opened = gate @ token
        return down @ (opened / (1 + np.exp(-opened)) * (up @ token))

    return run


def naive_block(weights: dict[str, Any], model_type: str, hidden: Any, eps: float) -> Any:
    """What a block of experts adds to tokens [N, hidden_size], in float64."""
    x = naive_llama.rms_norm(hidden, weights["post_attention_layernorm.weight"], eps)
    bias = weights.get("mlp.gate.e_score_correction_bias")
    routed = [
        naive_moe.route(row, bias=bias, **ROUTINGS[model_type])
        for row in x @ weights["mlp.gate.weight"].T
    ]
    count = len(weights["mlp.gate.weight"])
    mlps = [mlp(weights, f"mlp.experts.{expert}") for expert in range(count)]
    output = naive_moe.mixture(x, *zip(*routed, strict=True), mlps)
    if model_type == "glm4_moe":
        return output + [mlp(weights, "mlp.shared_experts")(row) for row in x]
    opened = 1 / (1 + np.exp(-(x @ weights["mlp.shared_expert_gate.weight"].T)))
    return output + opened * [mlp(weights, "mlp.shared_expert")(row) for row in x]


@pytest.mark.parametrize("model_type", ROUTINGS)
def test_a_block_is_its_definition(tmp_path: Path, model_type: str) -> None:
    """Over several parts, which hold different numbers of tokens of each expert."""
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, model_type))
    decoder, rng = Decoder(checkpoint), np.random.default_rng(0)
    parts = [rng.standard_normal((count, 7, 64), np.float32) for count in (1, 2, 1)]
    weights = {
        name.removeprefix("model.layers.0."): checkpoint.tensor(name).astype(np.float64)
        for name in checkpoint.names()
    }
    eps = checkpoint.config.rms_norm_eps
    expected = []
    for part in parts:
        rows = part.reshape(-1, 64).astype(np.float64)
        expected.append((rows + naive_block(weights, model_type, rows, eps)).reshape(part.shape))
    block = decoder.block(0)
    block.mlp.forward_parts(Parts(parts))
    for actual, wanted in zip(parts, expected, strict=True):
        assert_close(actual, wanted)


def test_experts_are_read_while_they_are_needed(tmp_path: Path) -> None:
    """Each once for all parts; a block holds none of them before and after."""
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, "qwen2_moe"))
    asked = []

    def read(name: str) -> Any:
        asked.append(name)
        return checkpoint.tensor(name)

    decoder = Decoder(checkpoint, read)
    block = decoder.block(0)
    assert not [name for name in asked if ".experts." in name]
    assert not [name for name in block.linears if ".experts." in name]
    ones = [np.ones((count, 3, 64), np.float32) for count in (2, 1)]
    block.forward_parts(Parts(ones))
    experts = [name for name in asked if ".experts." in name]
    assert sorted(experts) == sorted(set(experts))
    assert len(experts) == 3 * 3
    assert not [name for name in block.linears if ".experts." in name]


def test_every_token_goes_to_its_experts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_described_checkpoint(tmp_path, "glm4_moe"))
    block, rng = Decoder(checkpoint).block(0), np.random.default_rng(0)
    parts = [rng.standard_normal((n, 5, 64), np.float32) for n in (2, 1)]
    run = ExpertsRun(block.mlp, Parts(parts))
    rows = [len(piece.rows) for expert in range(6) for piece in run.rows(expert)]
    assert sum(rows) == 2 * 15
    with block.mlp.loaded([4]):
        of_all = np.concatenate(list(run.activations_of_all(4)))
    assert of_all.shape == (15, 16)


def fused(
    tensors: dict[str, Any], names: dict[str, str], transposed: bool, interleaved: bool
) -> dict[str, Any]:
    """The same tensors with all experts of a layer in one."""
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        experts = [
            {
                part: tensors[f"{prefix}mlp.experts.{expert}.{part}_proj.weight"]
                for part in ("gate", "up", "down")
            }
            for expert in range(4)
        ]
        both = []
        for own in experts:
            pair = np.stack([own["gate"], own["up"]], axis=1 if interleaved else 0)
            both.append(pair.reshape(-1, 64))
        gate_up, down = np.stack(both), np.stack([own["down"] for own in experts])
        for name, tensor in ((names["gate_up"], gate_up), (names["down"], down)):
            stored = tensor.swapaxes(1, 2) if transposed else tensor
            kept[prefix + name] = np.ascontiguousarray(stored)
    return kept


DEFAULT = {"gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}
OWN = {"gate_up": "mlp.input_linear.weight", "down": "mlp.output_linear.weight"}


@pytest.mark.parametrize("names", [DEFAULT, OWN], ids=["default", "own"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("told", [True, False], ids=["told", "by shape"])
@pytest.mark.parametrize("transposed", [False, True])
def test_layouts_hold_the_same_experts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: dict[str, str],
    transposed: bool,
    told: bool,
    interleaved: bool,
) -> None:
    own = ARCHITECTURES["qwen3_moe"]
    layout = dataclasses.replace(
        own.experts,
        transposed=transposed and told,
        either_way=not told,
        interleaved=interleaved,
        fused_gate_up="" if names is DEFAULT else names["gate_up"],
        fused_down="" if names is DEFAULT else names["down"],
    )
    monkeypatch.setitem(ARCHITECTURES, "qwen3_moe", dataclasses.replace(own, experts=layout))
    config = {
        "model_type": "qwen3_moe", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    }  # fmt: skip
    tensors = described_tensors(ModelConfig.from_hf(config))
    logits = []
    for folder, held in (
        ("each", tensors),
        ("fused", fused(tensors, names, transposed, interleaved)),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        save_file(held, tmp_path / folder / "model.safetensors")
        checkpoint = open_checkpoint(tmp_path / folder)
        assert set(checkpoint.names()) == set(tensors)
        for name in tensors:
            np.testing.assert_array_equal(checkpoint.tensor(name), tensors[name])
            assert checkpoint.info(name).shape == tensors[name].shape
            assert checkpoint.stored_bytes(name) == tensors[name].nbytes
            assert bytes(checkpoint.stored(name).data) == tensors[name].tobytes()
        decoder = Decoder(checkpoint)
        logits.append(decoder.logits(decoder.forward(random_tokens(9))))
    np.testing.assert_array_equal(*logits)


def test_fused_experts_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = write_described_checkpoint(tmp_path, "glm4_moe")
    checkpoint = open_checkpoint(folder)
    tensors = {
        name: checkpoint.tensor(name)
        for name in checkpoint.names()
        if ".0.mlp.experts." not in name
    }
    tensors["model.layers.0.mlp.experts.down_proj"] = np.zeros((6, 64, 17), np.float32)
    save_file(tensors, folder / "model.safetensors")
    named = r"model.layers.0.mlp.experts.down_proj: expected shape \(6, 64, 16\), got \(6, 64, 17\)"
    with pytest.raises(ValueError, match=named):
        open_checkpoint(folder)


CONFIG = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 320}
CONFIG |= {"intermediate_size": 96, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 0},
            "num_local_experts: expected an integer",
        ),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok: expected an"),
        (
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts": 5},
            r"num_local_experts and num_experts: expected the same, got \[4, 5\]",
        ),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [-1]}, "mlp_only_layers: expected a list"),
        ({"model_type": "glm4_moe", "n_group": 3}, "n_group: expected a divisor of 128 experts"),
        (
            {"model_type": "glm4_moe", "topk_group": 2},
            "topk_group: expected an integer from 1 to 1",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_hf(CONFIG | keys)


def test_which_layers_have_experts() -> None:
    qwen = {"model_type": "qwen2_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    mixture = ModelConfig.from_hf(CONFIG | qwen).mixture
    assert mixture is not None
    assert mixture.layers == (False, True, False, False)
    glm = {"model_type": "glm4_moe", "first_k_dense_replace": 3}
    mixture = ModelConfig.from_hf(CONFIG | glm).mixture
    assert mixture is not None
    assert mixture.layers == (False, False, False, True)


def test_what_chooses_positions_is_left_beside(tmp_path: Path) -> None:
    folder = write_described_checkpoint(tmp_path, "deepseek_v3", model_type="deepseek_v32")
    checkpoint = open_checkpoint(folder)
    assert beside(checkpoint.config, checkpoint.names()) == ["self_attn.indexer."]
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    chooser = "model.layers.1.self_attn.indexer.wk.weight"
    tensors[chooser] = np.ones((4, 64), np.float32)
    tensors[chooser.replace("layers.1", "layers.2")] = tensors[chooser]
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert [name for name in checkpoint.names() if "indexer" in name] == [chooser]
    assert not is_decoders(checkpoint.config, chooser)
    block = Decoder(checkpoint).block(1)
    assert block.producer(block.stages[0]) is None  # it reads what the norm gives
    assert block.producer(("self_attn.q_b_proj",)) is None
    assert block.producer(("self_attn.kv_b_proj",)) == "self_attn.kv_a_layernorm"


def test_layers_that_predict_further_tokens_are_left_beside(tmp_path: Path) -> None:
    folder = write_described_checkpoint(tmp_path, "glm4_moe", num_nextn_predict_layers=1)
    checkpoint = open_checkpoint(folder)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    tensors["model.layers.2.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert "model.layers.2.eh_proj.weight" in open_checkpoint(folder).names()
    tensors["model.layers.3.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert "model.layers.3.eh_proj.weight" not in open_checkpoint(folder).names()
