"""Tensors that threads read ahead for a device."""

import threading
import time

import numpy as np
import pytest

from numbacalib.models.place import HOST, Place
from numbacalib.models.read_ahead import ReadAhead


class Device(Place):
    """A device whose staging memory is plain."""

    def staging(self, size):
        return np.empty(size, np.uint8)


DEVICE = Device("cuda:0", 1, 1, 1)
TENSORS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(8, dtype=np.float16), "c": np.ones(3)}


class Reader:
    """Notes what is read, and in which thread."""

    def __init__(self):
        self.read = []

    def __call__(self, name):
        self.read.append((name, threading.current_thread() is threading.main_thread()))
        return TENSORS[name]


def test_what_was_begun_is_read_once_and_by_threads():
    reader = Reader()
    ahead = ReadAhead(reader, DEVICE)
    np.testing.assert_array_equal(ahead("c"), TENSORS["c"])
    ahead.start(["a", "b"])
    for name in ("b", "a"):
        found = ahead(name)
        assert found.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(found, TENSORS[name])
    np.testing.assert_array_equal(ahead("a"), TENSORS["a"])
    first, *ahead, last = reader.read
    assert (first, sorted(ahead), last) == (("c", True), [("a", False), ("b", False)], ("a", True))


def test_buffers_are_used_again_and_grow():
    ahead = ReadAhead(lambda name: TENSORS[name], DEVICE)
    for names in (["b", "a"], ["a", "c"], ["c", "b"]):
        ahead.start(names)
        for name in names:
            np.testing.assert_array_equal(ahead(name), TENSORS[name])


def test_an_error_comes_when_the_tensor_is_asked_for():
    ahead = ReadAhead(lambda name: TENSORS[name], DEVICE)
    ahead.start(["a", "missing", "b"])
    np.testing.assert_array_equal(ahead("a"), TENSORS["a"])
    with pytest.raises(KeyError, match="missing"):
        ahead("missing")
    np.testing.assert_array_equal(ahead("b"), TENSORS["b"])


def test_the_host_reads_nothing_ahead():
    reader = Reader()
    ahead = ReadAhead(reader, HOST)
    ahead.start(["a"])
    assert reader.read == []
    ahead("a")
    assert reader.read == [("a", True)]


def test_a_dropped_read_leaves_its_buffer_before_the_next_one_takes_it():
    begun, go_on = threading.Event(), threading.Event()

    def read(name):
        if name == "late":
            begun.set()
            assert go_on.wait(10)
            return np.full(6, 7.0)
        return np.arange(6.0)

    ahead = ReadAhead(read, DEVICE)
    ahead.start(["late"])
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    ahead.start(["next"])
    found = ahead("next")
    time.sleep(0.2)  # in which a copy that nobody waited for would end
    np.testing.assert_array_equal(found, np.arange(6.0))
