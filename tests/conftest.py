"""The memory of a test process.

A store, a loop or a whole daemon is full of cycles, and what is in them is large: disks in memory,
caches. Left to itself the collector comes by when the number of objects has grown by a quarter of
those that pytest and the imports have made, which takes some hundred MiB (measured: 25 a test).
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


def pytest_collection_finish() -> None:
    """What is there now stays: the collector need not look at it again, which makes it quick."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """What a large test leaves is freed with it; the small ones may wait for each other."""
    result = yield
    if gc.get_count()[2]:  # some 7,000 objects since the last look at all of them
        gc.collect()
    return result
