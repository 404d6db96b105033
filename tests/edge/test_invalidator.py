"""The kernel is told of names, once each, and not while somebody waits for the directory."""

from __future__ import annotations

import errno

import pytest
import trio

from ghostd import invalidator
from ghostd.invalidator import Invalidator


async def test_names_of_a_directory_that_is_being_listed_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, told = trio.open_memory_channel[tuple[int, bytes]](10)
    listing = {7}

    def tell(directory: int, name: bytes) -> None:
        trio.from_thread.run_sync(send.send_nowait, (directory, name))
        if name == b"unknown":
            raise OSError(errno.ENOENT, "the kernel does not know it")

    monkeypatch.setattr(invalidator.pyfuse3, "invalidate_entry", tell)
    names = Invalidator()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.run, listing.__contains__)
            for place in ((7, b"held"), (8, b"free"), (8, b"free"), (8, b"unknown"), (7, b"held")):
                names.name(*place)
            assert [await told.receive() for _ in range(2)] == [(8, b"free"), (8, b"unknown")]
            names.name(9, b"later")
            assert await told.receive() == (9, b"later")
            listing.clear()
            assert await told.receive() == (7, b"held")
            nursery.cancel_scope.cancel()
    assert told.statistics().current_buffer_used == 0


async def test_who_waits_until_the_kernel_has_been_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []
    listing = {7}

    def tell(_: int, name: bytes) -> None:
        told.append(name)
        trio.from_thread.run(trio.lowlevel.checkpoint)

    monkeypatch.setattr(invalidator.pyfuse3, "invalidate_entry", tell)
    names = Invalidator()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.run, listing.__contains__)
            await names.told()
            names.name(8, b"a")
            names.name(8, b"b")
            await names.told()
            assert told == [b"a", b"b"]
            names.name(7, b"held")
            names.name(8, b"c")
            nursery.start_soon(_clear, listing)
            await names.told()
            assert sorted(told) == [b"a", b"b", b"c", b"held"]
            nursery.cancel_scope.cancel()


async def _clear(listing: set[int]) -> None:
    await trio.lowlevel.checkpoint()
    listing.clear()
