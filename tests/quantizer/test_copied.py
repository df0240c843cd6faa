"""What a quantized checkpoint takes over from its model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from models.tiny import write_tiny_checkpoint
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from numbacalib.quantizer import Settings, quantize

# (type, shape, bytes) of tensors beside the decoder's.
EXTRAS = {
    "extra.flags": ("BOOL", (3,), b"\1\0\1"),
    "extra.scale": ("F8_E8M0", (2, 2), b"\x7f\x80\0\xff"),
    "extra.weight": ("F8_E4M3", (4,), b"\x01\x7f\xfe\xff"),
    "extra.packed": ("F4", (2, 4), b"\x12\x34\x56\x78"),
    "extra.count": ("U16", (2,), b"\xff\xff\0\1"),
    "extra.words": ("U32", (1,), b"\xde\xad\xbe\xef"),
    "extra.wave": ("C64", (1,), np.array([1 - 2j], np.complex64).tobytes()),
}


def add_extras(file: Path) -> None:
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    for name, (dtype, shape, extra) in EXTRAS.items():
        span = [len(data), len(data) + len(extra)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        data += extra
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_other_tensors_and_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    model, output = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16"), tmp_path / "out"
    add_extras(model / "model.safetensors")
    (model / "LICENSE").write_text("terms")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    settings = Settings(method="rtn", bits=4, group_size=32)
    quantize(model, output, settings=settings)
    written = dict(deserialize((output / "model.safetensors").read_bytes()))
    for name, extra in EXTRAS.items():
        read = written[name]
        assert (read["dtype"], tuple(read["shape"]), bytes(read["data"])) == extra
    for name, tensor in deserialize((model / "model.safetensors").read_bytes()):
        assert name.endswith("_proj.weight") or bytes(written[name]["data"]) == bytes(
            tensor["data"]
        )
    assert (output / "LICENSE").read_text() == "terms"
    assert (output / "additional_chat_templates" / "tools.jinja").read_text() == "{{ x }}"


def test_old_tables_and_a_repeated_head_are_left_out(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, model / "model.safetensors")
    quantize(model, tmp_path / "out", settings=Settings(method="rtn", bits=4, group_size=32))
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert not [name for name in names if "lm_head" in name or "rotary" in name]
