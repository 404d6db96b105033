"""What all tests have in common: examples that are the same every time, and memory.

The suite says the same about the same code; `make soak` looks for new examples.

A store, a loop or a whole daemon is full of cycles, and what is in them is large: disks in memory,
caches. Left to itself the collector comes by when the number of objects has grown by a quarter of
those that pytest and the imports have made, which takes some hundred MiB (measured: 25 a test).
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("new", print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, whose settings are made then."""
    settings.load_profile("new" if config.getoption("markexpr") == "soak" else "same")


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
