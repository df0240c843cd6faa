"""Python's garbage collector is as it was before, wherever it was told to wait."""

from __future__ import annotations

import gc
import weakref

import pytest

from numbacalib.runtime.garbage import collector_paused


class Cycle:
    """What only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector_restored():
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    if enabled:
        gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_on_again_only_if_it_was(enabled):
    if not enabled:
        gc.disable()
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


def test_the_collector_is_on_again_after_an_error():
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_garbage_that_was_made_meanwhile_is_found_later():
    with collector_paused():
        seen = weakref.ref(Cycle())
    assert seen() is not None
    gc.collect()
    assert seen() is None


def test_what_others_froze_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collector_paused():
        pass
    assert gc.get_freeze_count() == frozen > 0
