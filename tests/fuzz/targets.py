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
from fuzz.hf_seeds import hf_seed, other_seed, packed_seed
from fuzz.mutations import damaged_bytes, damaged_json, damaged_value
from models.converted_cases import SIZES
from models.converted_gguf import write
from models.converted_hybrids import HYBRIDS

from numbacalib.models.architectures import ARCHITECTURES


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
    _ = checkpoint.tokenizer
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


def _packed_damage(random_: random.Random, directory: Path) -> None:
    file = directory / "config.json"
    if random_.random() < 0.3:
        return _hf_damage(random_, directory)
    config = json.loads(file.read_text())
    (key,) = config.keys() & {"quantization_config", "quantization"}
    quantization = damaged_json(random_, json.dumps(config.pop(key)).encode())
    text = json.dumps(config).encode()
    file.write_bytes(text[:-1] + f', "{key}": '.encode() + quantization + b"}")
    return None


def _read_packed(path: Path) -> None:
    from numbacalib.formats import dequantized
    from numbacalib.models import Decoder, open_checkpoint

    Decoder(dequantized(open_checkpoint(path))).block(0)


def _hybrid_seed(directory: Path, form: int) -> Path:
    name = list(HYBRIDS)[form]
    case, file = HYBRIDS[name], directory / "some.gguf"
    key = ARCHITECTURES[case.config["model_type"]].key
    config = {key(size): value for size, value in SIZES.items()} | case.config
    write(file, name, config, case)
    return file


TARGETS = {
    "gguf model": Target(4, _gguf_seed, _gguf_damage, _read_model),
    "gguf of two kinds of layers": Target(len(HYBRIDS), _hybrid_seed, _bytes_damage, _read_model),
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
    "hugging face": Target(6, hf_seed, _hf_damage, _read_model),
    "tokenizer.json": Target(1, hf_seed, _tokenizer_damage, _read_tokenizer),
    "quantization_config": Target(2, packed_seed, _packed_damage, _read_packed),
    "GPTQ, AWQ and MLX": Target(3, other_seed, _packed_damage, _read_packed),
}
