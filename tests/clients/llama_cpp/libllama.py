"""llama.cpp through its C API, by ctypes: loads a model, gives logits, tokenizes, quantizes.

The library is what ``NUMBACALIB_LIBLLAMA`` names, such as ``bins/linux-x64/libllama.*.so`` of npm's
``@node-llama-cpp/linux-x64``. Parameters are structs that grow with releases: buffers are longer than any,
and only their first fields are touched, which have been the same for years (https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTER, TEXT, INTEGER = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, TEXT, POINTER)


def _opaque(size: int) -> Any:
    return type(
        f"Opaque{size}", (ctypes.Structure,), {"_fields_": [("raw", ctypes.c_uint8 * size)]}
    )


ModelParameters, ContextParameters = _opaque(256), _opaque(512)


class QuantizeParameters(ctypes.Structure):
    """``llama_model_quantize_params``, up to the importance."""

    _fields_ = (
        ("threads", INTEGER),
        ("file_type", INTEGER),
        ("output_type", INTEGER),
        ("embedding_type", INTEGER),
        ("flags", ctypes.c_bool * 6),  # the first allows quantized sources
        ("importance", POINTER),
        ("rest", ctypes.c_uint8 * 256),
    )


class Importance(ctypes.Structure):
    """``llama_model_imatrix_data``."""

    _fields_ = (("name", TEXT), ("data", POINTER), ("size", ctypes.c_size_t))


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("count", INTEGER),
        ("tokens", ctypes.POINTER(INTEGER)),
        ("embeddings", POINTER),
        ("positions", ctypes.POINTER(INTEGER)),
        ("sequence_counts", ctypes.POINTER(INTEGER)),
        ("sequences", ctypes.POINTER(ctypes.POINTER(INTEGER))),
        ("outputs", ctypes.POINTER(ctypes.c_int8)),
    )


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (LOG, POINTER)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParameters, ()),
    "llama_context_default_params": (ContextParameters, ()),
    "llama_model_load_from_file": (POINTER, (TEXT, ModelParameters)),
    "llama_model_free": (None, (POINTER,)),
    "llama_init_from_model": (POINTER, (POINTER, ContextParameters)),
    "llama_free": (None, (POINTER,)),
    "llama_set_n_threads": (None, (POINTER, INTEGER, INTEGER)),
    "llama_model_get_vocab": (POINTER, (POINTER,)),
    "llama_vocab_n_tokens": (INTEGER, (POINTER,)),
    "llama_tokenize": (
        INTEGER,
        (POINTER, TEXT, INTEGER, ctypes.POINTER(INTEGER), INTEGER, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_get_memory": (POINTER, (POINTER,)),
    "llama_memory_clear": (None, (POINTER, ctypes.c_bool)),
    "llama_batch_init": (Batch, (INTEGER, INTEGER, INTEGER)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (INTEGER, (POINTER, Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (POINTER,)),
    "llama_model_quantize_default_params": (QuantizeParameters, ()),
    "llama_model_quantize": (
        ctypes.c_uint32,
        (TEXT, TEXT, ctypes.POINTER(QuantizeParameters)),
    ),
}


class Llama:
    """The library; `Model` is one of its models."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or Path(os.environ["NUMBACALIB_LIBLLAMA"])
        self.calls = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, arguments
        self._silence = LOG(lambda *_: None)
        self.calls.llama_log_set(self._silence, None)
        self.calls.llama_backend_init()
        for library in path.parent.glob("libggml.*so"):  # backends that are modules of their own
            loader = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            loader.ggml_backend_load_all_from_path.argtypes = (TEXT,)
            loader.ggml_backend_load_all_from_path(os.fsencode(path.parent))

    def quantize(
        self, source: Path, target: Path, file_type: int, importance: dict[str, NDArray[np.float32]]
    ) -> None:
        """Do what ``llama-quantize --imatrix`` does; the importance is by tensor, [K] each."""
        parameters = self.calls.llama_model_quantize_default_params()
        parameters.threads, parameters.file_type = len(os.sched_getaffinity(0)), file_type
        parameters.flags[0] = True
        kept = [np.ascontiguousarray(each, np.float32) for each in importance.values()]
        entries = (Importance * (len(kept) + 1))(
            *(
                Importance(name.encode(), each.ctypes.data, each.size)
                for name, each in zip(importance, kept, strict=True)
            )
        )
        parameters.importance = ctypes.cast(entries, POINTER)
        files = os.fsencode(source), os.fsencode(target)
        if status := self.calls.llama_model_quantize(*files, ctypes.byref(parameters)):
            raise RuntimeError(f"{source}: llama_model_quantize returned {status}")


class Model:
    """A GGUF file as llama.cpp has it in memory; a context manager."""

    def __init__(self, llama: Llama, path: Path, length: int = 256, threads: int = 1) -> None:
        self._calls = calls = llama.calls
        self._model = calls.llama_model_load_from_file(
            os.fsencode(path), calls.llama_model_default_params()
        )
        if not self._model:
            raise OSError(f"{path}: llama.cpp refused it")
        parameters = calls.llama_context_default_params()
        np.frombuffer(parameters.raw, np.uint32)[:3] = length  # context, batch, micro-batch
        self._context = calls.llama_init_from_model(self._model, parameters)
        calls.llama_set_n_threads(self._context, threads, threads)
        self._vocabulary = calls.llama_model_get_vocab(self._model)
        self.vocabulary_size = calls.llama_vocab_n_tokens(self._vocabulary)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, with those that stand around it if `special`."""
        data = text.encode()
        found = (INTEGER * (len(data) + 8))()
        options = special, special
        count = self._calls.llama_tokenize(
            self._vocabulary, data, len(data), found, len(found), *options
        )
        return list(found[:count])

    def logits(self, tokens: Any) -> NDArray[np.float32]:
        """Logits after each token, [T, V]."""
        self._calls.llama_memory_clear(self._calls.llama_get_memory(self._context), True)
        batch = self._calls.llama_batch_init(len(tokens), 0, 1)
        batch.count = len(tokens)
        for i, token in enumerate(tokens):
            batch.tokens[i], batch.positions[i], batch.outputs[i] = int(token), i, 1
            batch.sequence_counts[i], batch.sequences[i][0] = 1, 0
        if status := self._calls.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        shape = len(tokens), self.vocabulary_size
        found = np.ctypeslib.as_array(self._calls.llama_get_logits(self._context), shape).copy()
        self._calls.llama_batch_free(batch)
        return found

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.llama_free(self._context)
        self._calls.llama_model_free(self._model)
