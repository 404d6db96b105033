"""The kernel is told of names, once each, and not while somebody waits for the directory."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
import trio

from ghostd import invalidator
from ghostd.invalidator import Invalidator


async def until(done: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not done():
            await trio.sleep(0.005)


async def test_names_of_a_directory_that_is_being_listed_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, bytes]] = []
    listing = {7}

    def tell(directory: int, name: bytes) -> None:
        told.append((directory, name))
        if name == b"unknown":
            raise OSError(errno.ENOENT, "the kernel does not know it")

    monkeypatch.setattr(invalidator.pyfuse3, "invalidate_entry", tell)
    names = Invalidator()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.run, listing.__contains__)
        for place in ((7, b"held"), (8, b"free"), (8, b"free"), (8, b"unknown"), (7, b"held")):
            names.name(*place)
        await until(lambda: len(told) == 2)
        names.name(9, b"later")
        await until(lambda: len(told) == 3)
        assert told == [(8, b"free"), (8, b"unknown"), (9, b"later")]
        listing.clear()
        await until(lambda: len(told) == 4)
        assert told[3:] == [(7, b"held")]
        nursery.cancel_scope.cancel()
