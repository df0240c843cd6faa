"""Our forward pass and tokenizers against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.tiny import tiny_config
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from numbacalib.models import Checkpoint, Decoder, ModelConfig, open_checkpoint
from numbacalib.models.rope import inverse_frequencies

# Of the largest logit; both sides compute in float32 and add in another order.
RTOL = 1e-4

LENGTH = 80

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    # Longer than max_position_embeddings, so that the base does change.
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.5,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": np.linspace(1, 2, 8).tolist(),
        "long_factor": np.linspace(2, 9, 8).tolist(),
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "mistral": {"model_type": "mistral", "head_dim": 24},
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "qwen3-biased": {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
}

TEXTS = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation.",
    "  leading,   inner\t\tand trailing spaces  \n\n\r\n  ",
    "In 1863, 3.14159 and 1,000,000; x2 ² ½ ٣",
    "naïve café, cafe\u0301, Ünïcödé, 東京タワー, Привет, مرحبا, 🙂👩‍👩‍👧",
    "def f(x):\n    return {'a': x**2, \"b\": [x >> 1]}  # don't DON'T we'll",
    "<|im_start|>user\nHello<|im_end|>\n",
    "a\u00a0b\u200bc\ufeff",
    "",
)


def assert_close(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RTOL * np.abs(expected).max())


def save_random_model(directory: Path, config: dict[str, Any]) -> Any:
    """A transformers model with weights large enough that every part shows in the logits."""
    torch.manual_seed(0)
    options = {key: value for key, value in config.items() if key != "architectures"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    return model


def compare(model: Any, checkpoint: Checkpoint, tokens: NDArray[Any]) -> None:
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    decoder = Decoder(checkpoint)
    assert_close(decoder.logits(decoder.forward(tokens)), expected)


def random_tokens(seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 320, (2, LENGTH))


@pytest.mark.parametrize("overrides", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_logits_of_every_architecture(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = save_random_model(tmp_path, tiny_config(**overrides))
    compare(model, open_checkpoint(tmp_path), random_tokens())


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_logits_of_every_rope_scaling(
    tmp_path: Path, model_type: str, scaling: dict[str, Any]
) -> None:
    rope = {"rope_theta": 5000.0, **scaling}
    config = tiny_config(model_type, max_position_embeddings=64, rope_parameters=rope)
    del config["rope_theta"]
    model = save_random_model(tmp_path, config)
    checkpoint = open_checkpoint(tmp_path)
    compare(model, checkpoint, random_tokens())

    plain, _ = inverse_frequencies(ModelConfig.from_hf(tiny_config(rope_theta=5000.0)).rope, LENGTH)
    frequencies, attention = inverse_frequencies(checkpoint.config.rope, LENGTH)
    changed = attention != 1 or not np.allclose(frequencies, plain)
    assert changed == (scaling["rope_type"] != "default"), "the scaling has no effect to compare"


def test_logits_of_a_short_longrope_sequence(tmp_path: Path) -> None:
    config = tiny_config(rope_parameters={"rope_theta": 1e4, **SCALINGS["longrope"]})
    compare(save_random_model(tmp_path, config), open_checkpoint(tmp_path), random_tokens()[:, :16])


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Checkpoint:
    return open_checkpoint(smollm2_file)


def test_logits_of_smollm2_on_text(smollm2: Checkpoint) -> None:
    config = AutoConfig.for_model(**smollm2.hf_config())
    model = AutoModelForCausalLM.from_config(config).float().eval()
    tensors = {name: torch.tensor(smollm2.tensor(name)) for name in smollm2.names()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"]  # tied
    assert unexpected == []
    model.tie_weights()
    tokens = np.array([smollm2.tokenizer.encode(" ".join(TEXTS)).ids])
    assert tokens.size > 100
    compare(model, smollm2, tokens)
    with torch.no_grad():
        batch = torch.from_numpy(tokens)
        expected = model(batch, labels=batch).loss.item()
    assert Decoder(smollm2).loss(tokens) == pytest.approx(expected, rel=RTOL)


def test_transformers_reads_the_tokenizer_that_we_write(
    smollm2: Checkpoint, tmp_path: Path
) -> None:
    for name, content in smollm2.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = smollm2.tokenizer.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    chat = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Published ids of SmolLM2's own tokenizer.
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ],
)
def test_smollm2_tokens(smollm2: Checkpoint, text: str, expected: list[int]) -> None:
    assert smollm2.tokenizer.encode(text).ids == expected
