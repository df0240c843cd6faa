"""Finished parts of a run, kept on disk until its output is complete: a killed run resumes from them.

A block is one file of codes, grids and reports. The hidden states after it are not kept: they are as
large for a small model as for a deep one, and writing them after every block would cost most runs more
than a resumed one saves. They are computed again, by a forward pass through the finished blocks, which
gives the same bits. Nothing in a run draws random numbers.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits, word_count
from numbacalib.formats.durable import write_whole
from numbacalib.formats.format import LayerGrid
from numbacalib.formats.output_directory import existing
from numbacalib.formats.output_lock import locked
from numbacalib.formats.safetensors_writer import write_safetensors
from numbacalib.methods import LayerReport, QuantizedWeight
from numbacalib.models import TensorInfo
from numbacalib.models.input_files import InputFiles
from numbacalib.models.safetensors_file import STORED_TYPES, StoredTensor, read_header
from numbacalib.quantizer.identity import differences
from numbacalib.runtime.alone import begin_alone

log = logging.getLogger("numbacalib")

IDENTITY = "run.json"
"""Name of the file that holds the identity of the run."""
LOCK = "lock"
QUEUED_BYTES = 64_000_000
"""Bytes of codes that may wait to be written while the run goes on: many narrow blocks, no wide one."""
DESCRIPTION = "description"
"""Name of the tensor that holds a block's JSON: one file is written whole or not at all, two may not be."""

_BLOCKS = "block-*.safetensors"
_SAME_AGAIN = (ValueError, TypeError, FloatingPointError)
"""Errors that the same inputs and settings raise every time."""


@dataclass(frozen=True)
class FinishedBlock:
    """Quantized decoder block; arrays are on the host."""

    layers: dict[str, QuantizedWeight]
    """By full name without ``.weight``."""
    reports: list[LayerReport]
    vectors: dict[str, NDArray[Any]]
    """Norms and biases that absorbed channel scales, by full name."""
    scales: dict[str, NDArray[Any]]
    """Folded channel scales, by the first layer of their stage."""

    @property
    def nbytes(self) -> int:
        """Bytes of its codes, which are most of its size."""
        return sum(weight.codes.nbytes for weight in self.layers.values())


class Work:
    """Finished blocks in a directory, opened by `open_work`.

    Attributes
    ----------
    directory : Path
    finished : int
        Blocks, from the first on, that were there when it was opened.
    """

    def __init__(self, directory: Path, thread: ThreadPoolExecutor) -> None:
        self.directory = directory
        self.finished = _count(directory)
        self._thread = thread
        self._queue: deque[tuple[Future[None], int]] = deque()
        self._refused = False

    def save(self, index: int, block: FinishedBlock) -> None:
        """Keep a block, which must not change any more; it is written while the run continues.

        Raises
        ------
        OSError
            If writing an earlier block failed.
        """
        size = block.nbytes
        self._wait(QUEUED_BYTES - size)
        self._queue.append((self._thread.submit(self._write, index, block), size))

    def settle(self) -> None:
        """Wait until what was saved is on the disk.

        Raises
        ------
        OSError
            If writing fails.
        """
        self._wait(-1)

    def _wait(self, most: int) -> None:
        """Wait until no more than this many bytes are still to be written."""
        while self._queue:
            written = self._queue[0][0]
            if not written.done() and sum(size for _, size in self._queue) <= most:
                return
            self._queue.popleft()
            written.result()

    def _write(self, index: int, block: FinishedBlock) -> None:
        if self._refused:  # a block after a missing one does not help
            return
        try:
            write_whole(
                block_file(self.directory, index),
                lambda path: write_safetensors(path, _tensors_of(block)),
            )
        except BaseException:
            self._refused = True
            raise

    def blocks(self) -> Iterator[FinishedBlock]:
        """Read all finished blocks in order, each while the caller works on the one before it."""
        coming: deque[Future[FinishedBlock]] = deque()
        for index in range(_count(self.directory)):
            coming.append(self._thread.submit(self.load, index))
            if len(coming) > 1:
                yield coming.popleft().result()
        for last in coming:
            yield last.result()

    def load(self, index: int) -> FinishedBlock:
        """Read a finished block.

        Raises
        ------
        ValueError
            If its file is damaged.
        """
        file = block_file(self.directory, index)
        files = InputFiles()
        arrays = {}
        for name, entry in read_header(files, file).items():
            data = files.read(file, entry.begin, entry.length)
            dtype = STORED_TYPES[entry.dtype_name].dtype
            assert dtype is not None  # see _arrays_of
            arrays[name] = data.view(dtype).reshape(entry.shape)
        return _block_of(arrays)


@contextmanager
def open_work(directory: Path, identity: Mapping[str, Any], *, clean: bool) -> Iterator[Work]:
    """Open the directory of a run's finished blocks, and remove it when the run is complete.

    After an exception it stays if any block is finished, unless the same inputs would raise that again.

    Parameters
    ----------
    directory : Path
        Absent, empty, or left by a run with the same `identity`.
    identity : mapping
        Of the run, from `numbacalib.quantizer.identity.identity_of`.
    clean : bool
        Remove existing blocks, of any run.

    Raises
    ------
    ValueError
        If the directory holds other files or another run's, or another process uses it.
    OSError
        If writing fails.
    """
    with existing(directory):
        with (
            locked(directory / LOCK, directory),
            ThreadPoolExecutor(1, initializer=begin_alone) as thread,
        ):
            if clean:
                _remove(directory)
            _require_same_run(directory, identity)
            work = Work(directory, thread)
            try:
                yield work
            except BaseException as error:
                with suppress(OSError):  # the first error counts
                    work.settle()
                count = _count(directory)
                if not count or isinstance(error, _SAME_AGAIN):
                    _remove(directory)
                else:
                    log.warning(
                        "%d blocks are kept in %s: the same command resumes from them (--clean starts "
                        "over)",
                        count,
                        directory,
                    )
                raise
            _remove(directory)
        with suppress(OSError):  # a mount point stays
            directory.rmdir()


def kept_bytes(weights: Mapping[str, TensorInfo], grids: Mapping[str, LayerGrid]) -> int:
    """Upper bound on the bytes of the kept blocks' layers on these grids; zeros may be float32."""
    total = 0
    for name, grid in grids.items():
        rows, channels = weights[name].shape
        groups = channels // (grid.group_size or channels)
        words = word_count(channels, grid.bits)
        total += rows * (4 * words + groups * (grid.scale_dtype.itemsize + 4))
    return total


def _require_same_run(directory: Path, identity: Mapping[str, Any]) -> None:
    """Check that a directory's contents belong to the run; record the run's identity in an empty one."""
    file = directory / IDENTITY
    for left in directory.glob("*.partial"):
        left.unlink()
    others = [entry.name for entry in directory.iterdir() if entry.name != LOCK]
    if not others:
        text = json.dumps(identity, indent=1) + "\n"
        write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
        return
    if IDENTITY not in others:
        raise ValueError(
            f"{directory}: expected an empty directory or what a killed run left, found one with "
            f"files in it, such as {min(others)}"
        )
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected what a run writes ({error})") from None
    if different := differences(kept, identity):
        raise ValueError(
            f"{directory}: expected blocks of this run, found another's: {'; '.join(different)}; use "
            "the same inputs and settings, another --work, or --clean to start over"
        )


def _remove(directory: Path) -> None:
    """Remove the files of a run; blocks first, so that remaining blocks never lack their identity."""
    for file in (*directory.glob(_BLOCKS), *directory.glob("*.partial"), directory / IDENTITY):
        file.unlink(missing_ok=True)


def block_file(directory: Path, index: int) -> Path:
    """Path of a block's file."""
    return directory / _BLOCKS.replace("*", f"{index:04d}")


def _count(directory: Path) -> int:
    """Blocks that are finished, from the first on."""
    count = 0
    while block_file(directory, count).is_file():
        count += 1
    return count


def _tensors_of(block: FinishedBlock) -> dict[str, StoredTensor]:
    return {name: StoredTensor.of(array) for name, array in _arrays_of(block).items()}


def _arrays_of(block: FinishedBlock) -> dict[str, NDArray[Any]]:
    """Name all arrays of a block; one more holds everything else as JSON."""
    arrays: dict[str, NDArray[Any]] = {}
    layers = {}
    for name, weight in block.layers.items():
        arrays[f"{name}.codes"] = pack_bits(weight.codes, weight.bits)
        arrays[f"{name}.scales"] = weight.scales
        arrays[f"{name}.zeros"] = weight.zeros
        if weight.g_idx is not None:
            arrays[f"{name}.g_idx"] = weight.g_idx
        layers[name] = {
            "bits": weight.bits,
            "group_size": weight.group_size,
            "symmetric": weight.symmetric,
            "element": weight.element,
            "global_scale": weight.global_scale,
            "columns": weight.codes.shape[1],
        }
    for name, vector in block.vectors.items():
        arrays[f"{name}.vector"] = vector
    for name, scales in block.scales.items():
        arrays[f"{name}.channel_scales"] = scales
    description = {
        "layers": layers,
        "reports": [asdict(report) for report in block.reports],
        "vectors": list(block.vectors),
        "scales": list(block.scales),
    }
    arrays[DESCRIPTION] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    return arrays


def _block_of(arrays: Mapping[str, NDArray[Any]]) -> FinishedBlock:
    """Undo `_arrays_of`."""
    description = json.loads(arrays[DESCRIPTION].tobytes())
    layers = {}
    for name, own in description["layers"].items():
        columns, bits = own.pop("columns"), own["bits"]
        words = arrays[f"{name}.codes"]
        assert words.shape[1] == word_count(columns, bits)
        codes = unpack_bits(words, bits, columns)
        layers[name] = QuantizedWeight(
            codes,
            arrays[f"{name}.scales"],
            arrays[f"{name}.zeros"],
            **own,
            g_idx=arrays.get(f"{name}.g_idx"),
        )
    reports = [
        LayerReport(**report | {"shape": tuple(report["shape"])})
        for report in description["reports"]
    ]
    vectors = {name: arrays[f"{name}.vector"] for name in description["vectors"]}
    scales = {name: arrays[f"{name}.channel_scales"] for name in description["scales"]}
    return FinishedBlock(layers, reports, vectors, scales)
