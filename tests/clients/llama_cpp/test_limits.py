"""What configurations of an architecture may have and llama.cpp's model of it has not is refused.

It loads whatever is written: no tensor is there that it does not make, none is missing.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from clients.llama_cpp.libllama import Llama, Model
from models.gguf_models import LLAMA3, MODELS, SIZES, write_model
from models.tiny import random_tokens, write_tiny_checkpoint

from numbacalib.models import Decoder, ModelConfig, open_checkpoint
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.quantizer import Settings, quantize

LAST = Settings(method="rtn", skip=("model.layers.0.*", "model.layers.[1-2].*"))
"""What is rounded, activations with it, sends tokens to other experts: no more of it than must be."""
LLAMAS = ("llama", "qwen2", "qwen3")
MOST = 0.04
"""Of the largest logit, for most tokens: as in test_llama_cpp."""


def options_of(kind: str) -> list[dict[str, Any]]:
    """Options that decide which tensors there are, each the other way than some models have it."""
    described = ARCHITECTURES[kind]
    keys = [key for key in described.biases.values() if isinstance(key, str)]
    return [
        *({"tie_word_embeddings": tied} for tied in (True, False)),
        *({key: biased} for key in dict.fromkeys(keys) for biased in (True, False)),
        {described.key("num_key_value_heads"): 4},
        {"head_dim": 32},
        {"rope_scaling": LLAMA3},
        {"use_qk_norm": True},
        {"qk_layernorm": True},
        {"sliding_window": None},
        {"n_shared_experts": 0, "num_shared_experts": 0},
        {"first_k_dense_replace": 0, "num_dense_layers": 0},
        {"n_group": 2, "topk_group": 2},
        {"num_experts": 1, "num_local_experts": 1, "n_routed_experts": 1, "num_experts_per_tok": 1},
    ]


def written(directory, name, **options):
    """Write a model; None where its architecture does not know the options, or has them so anyway."""
    try:
        if name in LLAMAS:
            source = write_tiny_checkpoint(directory, name, **SIZES | options)
        else:
            source = write_model(directory, name, **options)
        config = ModelConfig.from_hf(json.loads((source / "config.json").read_text()))
    except (ValueError, KeyError):
        return None
    return source, config


@pytest.fixture(scope="module")
def llama():
    return Llama()


@pytest.mark.parametrize("name", [*LLAMAS, *(each for each in MODELS if "-" not in each)])
def test_what_is_not_refused_is_loaded(llama, tmp_path, name):
    _, plain = written(tmp_path / "plain", name)
    tried = 0
    for number, options in enumerate(options_of(name)):
        made = written(tmp_path / str(number), name, **options)
        if made is None or made[1] == plain:
            continue
        source, config = made
        output = tmp_path / f"out{number}"
        try:
            quantize(source, output, settings=LAST, formats=["gguf:Q8_0"])
        except ValueError as error:
            if "\n" in str(error):
                raise
            tried += 1
            continue
        (file,) = output.iterdir()
        tokens = random_tokens(1, 32)
        decoder = Decoder(open_checkpoint(file))
        ours = np.asarray(decoder.logits(decoder.forward(tokens)))[0]
        with Model(llama, file, tokens.size) as model:
            errors = np.abs(model.logits(tokens[0]) - ours).max(axis=1) / np.abs(ours).max()
        assert (errors < MOST).mean() >= (0.7 if config.mixture else 1.0), options
        tried += 1
    assert tried
