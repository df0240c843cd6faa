r"""Text files, by suffix.

- ``.jsonl``: one JSON object per line, with a string ``text``, or with ``messages``, a list of objects with
  ``role`` and ``content``, which the checkpoint's chat template renders as text (extra `chat`);
- ``.parquet``: a table with one of these two columns (extra `parquet`);
- any other: plain text.

Text is UTF-8, with or without a byte-order mark, and line ends of plain text are read as in Python's text
mode: all of ``\r\n``, ``\r`` and ``\n`` become ``\n``.
"""

from __future__ import annotations

import codecs
import io
import json
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from numbacalib.models import Checkpoint
from numbacalib.quantizer.chat import ChatTemplate
from numbacalib.quantizer.progress import Progress
from numbacalib.runtime.extras import extra

BLOCK = 1 << 16
"""Bytes that are read and tokenized at a time: an `Encoding` takes 200 times the size of its text."""


def read_documents(file: Path, checkpoint: Checkpoint, progress: Progress) -> Iterator[str]:
    """Read a file's text in pieces, with a step of progress for each `BLOCK`.

    Raises
    ------
    ValueError
        If the content does not fit the suffix; one line that names the file, and the line or row.
    OSError
        If it cannot be read.
    """
    kind = file.suffix.lower()
    if kind == ".jsonl":
        return _Records(file, checkpoint).texts(_json_lines(file, progress))
    if kind == ".parquet":
        return _Records(file, checkpoint).texts(_rows(file, progress))
    return _read_plain(file, progress)


class _Records:
    """Reader of the texts of a file's records."""

    def __init__(self, file: Path, checkpoint: Checkpoint) -> None:
        self._file, self._checkpoint = file, checkpoint

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._checkpoint)

    def texts(self, records: Iterator[tuple[str, Any]]) -> Iterator[str]:
        """Texts of records with their locations; each ``text`` gets a line end."""
        for where, record in records:
            if isinstance(record, dict) and isinstance(text := record.get("text"), str):
                yield f"{text}\n"
            elif isinstance(record, dict) and isinstance(record.get("messages"), list):
                try:
                    yield self._template.render(record["messages"])
                except ValueError as error:
                    raise ValueError(f"{self._file}: {where}: {error}") from None
            else:
                raise ValueError(
                    f"{self._file}: {where}: expected text (a string) or messages (a list), got neither"
                )


def _json_lines(file: Path, progress: Progress) -> Iterator[tuple[str, Any]]:
    read = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            for _ in range((read + len(line)) // BLOCK - read // BLOCK):
                progress.step()
            read += len(line)
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}: line {number}: expected JSON ({error})") from None


def _rows(file: Path, progress: Progress) -> Iterator[tuple[str, Any]]:
    with extra("parquet"):
        import pyarrow
        from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            names = [name for name in ("text", "messages") if name in table.schema_arrow.names]
            if not names:
                raise ValueError(f"{file}: expected a column text or messages, got neither")
            row, steps, rows = 0, file_size(file) // BLOCK, table.metadata.num_rows
            for batch in table.iter_batches(columns=names[:1]):
                for record in batch.to_pylist():
                    row += 1
                    for _ in range(steps * row // rows - steps * (row - 1) // rows):
                        progress.step()
                    yield f"row {row}", record
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: expected a parquet file ({error})") from None


def file_size(file: Path) -> int:
    """Bytes of a regular file; pipes and devices, which may have no end, are refused."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ValueError(f"{file}: expected a file of text, got {kind}")
    return status.st_size


def _read_plain(file: Path, progress: Progress) -> Iterator[str]:
    r"""Decode a file block by block, without a byte-order mark and with ``\n`` for all line ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    begin, is_first = 0, True
    with file.open("rb") as stream:
        while True:
            data = stream.read(BLOCK)
            if (nul := data.find(b"\0")) >= 0:
                raise ValueError(f"{file}: expected UTF-8 text, got a zero at byte {begin + nul}")
            held = len(decoder.getstate()[0])  # bytes of a character begun in the block before
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = error.start
                raise ValueError(
                    f"{file}: expected UTF-8 text, got 0x{error.object[at]:02x} at byte "
                    f"{begin - held + at}"
                ) from None
            text = lines.decode(text, final=not data)
            if is_first:
                text, is_first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not data:
                return
            begin += len(data)
            progress.step()
            progress.show(f"tokenizing {file.name}")
