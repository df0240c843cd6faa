"""Finished blocks wait to be written in a queue of bounded size, and come back in their order."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress

import numpy as np
import pytest

from numbacalib.formats import durable
from numbacalib.methods import QuantizedWeight
from numbacalib.quantizer import work
from numbacalib.quantizer.work import FinishedBlock, open_work

IDENTITY = {"version": {"numbacalib": "0"}}
SHAPE = 16, 64


def block(index):
    codes = np.full(SHAPE, index, np.uint8)
    ones = np.ones((SHAPE[0], 1), np.float32)
    weight = QuantizedWeight(codes, ones, ones.astype(np.uint8), 4, SHAPE[1], symmetric=False)
    return FinishedBlock({f"model.layers.{index}.mlp.up_proj": weight}, [], {}, {})


def numbers(kept):
    """Index of each block that is kept, as its codes have it."""
    return [int(next(iter(each.layers.values())).codes[0, 0]) for each in kept.blocks()]


def test_blocks_wait_to_be_written_in_bounded_memory(tmp_path, monkeypatch):
    """The disk stands still: two blocks find room to wait, the third does not until one is written."""
    moves, real = threading.Semaphore(0), durable.sync

    def slow(path):
        if path.name.endswith(".partial"):
            assert moves.acquire(timeout=60)
        real(path)

    monkeypatch.setattr(work, "QUEUED_BYTES", 2 * block(0).nbytes)
    with open_work(tmp_path / "work", IDENTITY, clean=False) as kept:
        monkeypatch.setattr(durable, "sync", slow)
        kept.save(0, block(0))
        kept.save(1, block(1))
        third = threading.Thread(target=kept.save, args=(2, block(2)))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        assert numbers_of_files(tmp_path / "work") == []
        moves.release()
        third.join(60)
        assert not third.is_alive()
        assert numbers_of_files(tmp_path / "work")[0] == 0
        for _ in range(2):
            moves.release()
        kept.settle()
        assert numbers_of_files(tmp_path / "work") == [0, 1, 2]
        assert numbers(kept) == [0, 1, 2]
    assert not (tmp_path / "work").exists()


def test_a_block_wider_than_the_queue_is_kept_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "QUEUED_BYTES", 1)
    with open_work(tmp_path / "work", IDENTITY, clean=False) as kept:
        for index in range(3):
            kept.save(index, block(index))
        kept.settle()
        assert numbers(kept) == [0, 1, 2]


def test_no_block_is_written_after_one_that_the_disk_refused(tmp_path, monkeypatch):
    real, begun = durable.sync, threading.Event()

    def full(path):
        if path.name.startswith("block-0001"):
            assert begun.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path)

    monkeypatch.setattr(durable, "sync", full)
    with suppress(KeyboardInterrupt), open_work(tmp_path / "work", IDENTITY, clean=False) as kept:
        for index in range(4):
            kept.save(index, block(index))
        begun.set()
        with pytest.raises(OSError, match="No space left"):
            kept.settle()
        raise KeyboardInterrupt
    assert numbers_of_files(tmp_path / "work") == [0]
    assert not list((tmp_path / "work").glob("*.partial"))


def numbers_of_files(directory):
    return sorted(int(file.stem[6:]) for file in directory.glob("block-*.safetensors"))
