"""What is fuzzed: for each reader its valid files, how they are damaged, and a call that reads all."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf_bytes
import safetensors_bytes
from fuzz.mutations import damaged_bytes, damaged_json, damaged_value


class Target(NamedTuple):
    """A reader under test.

    `seed` writes valid files for one of several forms into a directory and gives the path to read;
    `damage` replaces one of them; `read` asks for everything that there is.
    """

    forms: int
    seed: Callable[[Path, int], Path]
    damage: Callable[[random.Random, Path], None]
    read: Callable[[Path], None]


# GGUF

_TEXT = "a b\nab <s>1 Ä"


def _gguf_seed(directory: Path, form: int) -> Path:
    values = _gguf_values(form)
    file = directory / "some.gguf"
    file.write_bytes(gguf_bytes.model(values, _gguf_tensors(form)))
    return file


def _gguf_values(form: int) -> dict[str, Any]:
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 8,
        "llama.attention.sliding_window": 4,
        "llama.attention.key_length": 2,
    }
    return ({} if form % 2 else yarn) | (
        gguf_bytes.SENTENCEPIECE if form // 2 else gguf_bytes.TOKENIZER
    )


def _gguf_tensors(form: int) -> dict[str, tuple[int, ...]]:
    return {"rope_freqs.weight": (1,)} if form % 2 else {"output.weight": (4, 4)}


def _gguf_damage(random_: random.Random, file: Path) -> None:
    if random_.random() < 0.5:
        file.write_bytes(damaged_bytes(random_, file.read_bytes(), gguf_bytes.imatrix()))
        return
    form = random_.randrange(4)
    values = damaged_value(random_, gguf_bytes.LLAMA | _gguf_values(form))
    values = {key: item for key, item in values.items() if _fits(item)}
    whole = dict.fromkeys(gguf_bytes.LLAMA) | values
    file.write_bytes(gguf_bytes.model(whole, _gguf_tensors(form)))


def _fits(item: Any) -> bool:
    """Whether GGUF's types hold it."""
    if isinstance(item, list):
        return bool(item) and len({type(each) for each in item}) == 1 and all(map(_fits, item))
    if isinstance(item, bool | str | bytes):
        return True
    try:
        struct.pack("<f", item) if isinstance(item, float) else struct.pack("<I", item)
    except (struct.error, OverflowError):
        return False
    return True


def _read_model(path: Path) -> None:
    from numbacalib.models import Decoder, open_checkpoint

    checkpoint = open_checkpoint(path)
    checkpoint.hf_config()
    for name in checkpoint.names():
        info = checkpoint.info(name)
        tensor = checkpoint.tensor(name)
        assert (tensor.shape, tensor.dtype) == info, name
    Decoder(checkpoint)


def _read_tokenizer(path: Path) -> None:
    from numbacalib.models import open_checkpoint

    checkpoint = open_checkpoint(path)
    checkpoint.tokenizer.to_str()
    checkpoint.tokenizer_files()


def _use_gguf_tokenizer(path: Path) -> None:
    """All of its steps are ours, so that none can fail on a text or make it longer without end."""
    from numbacalib.models import open_checkpoint

    _read_tokenizer(path)
    tokenizer = open_checkpoint(path).tokenizer
    tokenizer.decode(tokenizer.encode(_TEXT).ids)


# importance and statistics


def _file_seed(content: Callable[[int], bytes]) -> Callable[[Path, int], Path]:
    def seed(directory: Path, form: int) -> Path:
        file = directory / "some.file"
        file.write_bytes(content(form))
        return file

    return seed


def _bytes_damage(random_: random.Random, file: Path) -> None:
    file.write_bytes(damaged_bytes(random_, file.read_bytes()))


def _safetensors_damage(random_: random.Random, file: Path) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if random_.random() < 0.4:
        file.write_bytes(damaged_bytes(random_, data))
        return
    header = damaged_json(random_, data[8 : 8 + length])
    stated = random_.choice((None, None, None, 0, len(header) - 1, len(header) + 1, 1 << 40))
    file.write_bytes(safetensors_bytes.with_header(header, data[8 + length :], stated))


def _read_importance(path: Path) -> None:
    from numbacalib.quantizer.importance import read_importance

    read_importance(path)


def _read_fisher(path: Path) -> None:
    from numbacalib.statistics import load_fisher

    load_fisher(path)


def _read_statistics(path: Path) -> None:
    from numbacalib.statistics import load_statistics, load_weights

    load_weights(path)
    load_statistics(path)


# Hugging Face directories

_SIZES = {
    "vocab_size": 4,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "max_position_embeddings": 16,
}
_LINEARS = {
    "self_attn.q_proj": (4, 4),
    "self_attn.k_proj": (2, 4),
    "self_attn.v_proj": (2, 4),
    "self_attn.o_proj": (4, 4),
    "mlp.gate_proj": (4, 4),
    "mlp.up_proj": (4, 4),
    "mlp.down_proj": (4, 4),
}
_CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {
        "model_type": "mistral",
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0},
    },
    {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention"],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
)
_TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 0,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": "\\s+"},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3},
        "merges": [["a", "b"]],
    },
}
_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "re:.*down_proj"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 4,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
}


def _zeros(dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    size = {"F32": 4, "BF16": 2, "I32": 4, "I64": 8}[dtype]
    count = 1
    for length in shape:
        count *= length
    return dtype, list(shape), bytes(size * count)


def _hf_tensors(biased: bool, packed: bool) -> dict[str, tuple[str, list[int], bytes]]:
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": _zeros("F32", 4, 4),
        "model.norm.weight": _zeros("F32", 4),
        "lm_head.weight": _zeros("BF16", 4, 4),
        f"{layer}input_layernorm.weight": _zeros("F32", 4),
        f"{layer}post_attention_layernorm.weight": _zeros("F32", 4),
    }
    for name, shape in _LINEARS.items():
        if biased and name[-6:-5] in "qkv":
            tensors[f"{layer}{name}.bias"] = _zeros("F32", shape[0])
        if not packed:
            tensors[f"{layer}{name}.weight"] = _zeros("F32", *shape)
            continue
        tensors[f"{layer}{name}.weight_packed"] = _zeros("I32", shape[0], 1)
        tensors[f"{layer}{name}.weight_scale"] = _zeros("F32", shape[0], 1)
        tensors[f"{layer}{name}.weight_shape"] = ("I64", [2], struct.pack("<2q", *shape))
    return tensors


def _hf_seed(directory: Path, form: int) -> Path:
    config = _SIZES | _CONFIGS[form % 3]
    weights = safetensors_bytes.file(_hf_tensors(form % 3 == 2, packed=False))
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
    if form < 3:
        (directory / "model.safetensors").write_bytes(weights)
        return directory
    shard = "model-00001-of-00001.safetensors"
    (directory / shard).write_bytes(weights)
    names = _hf_tensors(form % 3 == 2, packed=False)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def _hf_damage(random_: random.Random, directory: Path) -> None:
    files = [file for file in sorted(directory.iterdir()) if file.name != "tokenizer.json"]
    file = random_.choice(files)
    if file.suffix == ".json":
        file.write_bytes(damaged_json(random_, file.read_bytes()))
    else:
        _safetensors_damage(random_, file)


def _tokenizer_damage(random_: random.Random, directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_bytes(damaged_json(random_, file.read_bytes()))


def _packed_seed(directory: Path, form: int) -> Path:
    _hf_seed(directory, 0)
    symmetric = _QUANTIZATION if form == 0 else json.loads(json.dumps(_QUANTIZATION))
    tensors = _hf_tensors(biased=False, packed=True)
    if form:
        symmetric["config_groups"]["group_0"]["weights"]["symmetric"] = False
        for name, shape in _LINEARS.items():
            tensors[f"model.layers.0.{name}.weight_zero_point"] = _zeros(
                "I32", -(-shape[0] // 8), 1
            )
    config = _SIZES | _CONFIGS[0] | {"quantization_config": symmetric}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors_bytes.file(tensors))
    return directory


def _packed_damage(random_: random.Random, directory: Path) -> None:
    file = directory / "config.json"
    if random_.random() < 0.3:
        return _hf_damage(random_, directory)
    config = json.loads(file.read_text())
    quantization = damaged_json(random_, json.dumps(config.pop("quantization_config")).encode())
    text = json.dumps(config).encode()
    file.write_bytes(text[:-1] + b', "quantization_config": ' + quantization + b"}")
    return None


def _read_packed(path: Path) -> None:
    from numbacalib.formats import is_compressed, weight_reader
    from numbacalib.models import Decoder, open_checkpoint

    checkpoint = open_checkpoint(path)
    if is_compressed(checkpoint.hf_config()):
        decoder = Decoder(checkpoint, weight_reader(checkpoint))
        decoder.block(0)


TARGETS = {
    "gguf model": Target(4, _gguf_seed, _gguf_damage, _read_model),
    "gguf tokenizer": Target(4, _gguf_seed, _gguf_damage, _use_gguf_tokenizer),
    "imatrix": Target(
        1, _file_seed(lambda form: gguf_bytes.imatrix()), _bytes_damage, _read_importance
    ),
    "fisher": Target(
        1,
        _file_seed(lambda form: safetensors_bytes.file(safetensors_bytes.fisher())),
        _safetensors_damage,
        _read_fisher,
    ),
    "statistics": Target(
        1,
        _file_seed(
            lambda form: safetensors_bytes.file(
                safetensors_bytes.statistics(), safetensors_bytes.SHARED
            )
        ),
        _safetensors_damage,
        _read_statistics,
    ),
    "hugging face": Target(6, _hf_seed, _hf_damage, _read_model),
    "tokenizer.json": Target(1, _hf_seed, _tokenizer_damage, _read_tokenizer),
    "quantization_config": Target(2, _packed_seed, _packed_damage, _read_packed),
}
