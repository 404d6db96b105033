"""How the FUSE workers wait: nobody is starved, nobody reads at the same time."""

from __future__ import annotations

import os
import threading

import pyfuse3
import pytest
import trio

from ghostd import fuse_loop


@pytest.fixture
def wanted():
    """Set when something else waits for the loop."""
    return threading.Event()


@pytest.fixture
def lowlevel(monkeypatch, wanted):
    monkeypatch.setitem(vars(pyfuse3), "trio", pyfuse3.trio)
    fuse_loop.install(wanted.is_set)
    return pyfuse3.trio.lowlevel


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


async def test_what_is_there_is_found_without_the_loop(lowlevel, pipe):
    os.write(pipe[1], b"x")
    others = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note, others)
        await lowlevel.wait_readable(pipe[0])
        assert others == []  # no other task has run


async def test_other_tasks_get_their_turn_however_busy_the_clients_are(lowlevel, pipe):
    os.write(pipe[1], b"x")
    others = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note, others)
        # Twice: trio may wake us first in the round in which the other task runs.
        for _ in range(2 * (fuse_loop.IN_A_ROW_MAX + 1)):
            await lowlevel.wait_readable(pipe[0])
        assert others == ["ran"]


async def _note(others):
    others.append("ran")


async def test_an_idle_worker_waits_in_the_loop_until_something_comes(
    lowlevel, pipe, autojump_clock
):
    del autojump_clock  # time passes at once when all tasks wait in the loop
    with trio.move_on_after(3600) as scope:
        await lowlevel.wait_readable(pipe[0])
    assert scope.cancelled_caught
    os.write(pipe[1], b"x")
    await lowlevel.wait_readable(pipe[0])


async def test_it_does_not_linger_while_the_loop_is_wanted(lowlevel, pipe, wanted, monkeypatch):
    monkeypatch.setattr(fuse_loop, "LINGER_S", 3600.0)
    wanted.set()
    with trio.move_on_after(0.001) as scope:
        await lowlevel.wait_readable(pipe[0])
    assert scope.cancelled_caught


async def test_it_lingers_less_after_waiting_in_vain(lowlevel, pipe, monkeypatch):
    monkeypatch.setattr(fuse_loop, "LINGER_S", 0.0)
    for _ in range(fuse_loop.PATIENCE + 1):
        with trio.move_on_after(0):
            await lowlevel.wait_readable(pipe[0])
    monkeypatch.setattr(fuse_loop, "LINGER_S", 3600.0)
    with trio.move_on_after(0.001) as scope:
        await lowlevel.wait_readable(pipe[0])
    assert scope.cancelled_caught
    os.write(pipe[1], b"x")
    await lowlevel.wait_readable(pipe[0])  # the trio way, too, is still there


async def test_on_a_single_core_it_sleeps(monkeypatch, pipe):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setitem(vars(pyfuse3), "trio", pyfuse3.trio)
    fuse_loop.install(lambda: False)
    with trio.move_on_after(0.01) as scope:
        await pyfuse3.trio.lowlevel.wait_readable(pipe[0])
    assert scope.cancelled_caught
    os.write(pipe[1], b"x")
    await pyfuse3.trio.lowlevel.wait_readable(pipe[0])


async def test_one_worker_reads_at_a_time_and_the_next_follows(lowlevel, pipe):
    lock = pyfuse3.trio.Lock()
    inside = 0
    read = []

    async def worker(number):
        nonlocal inside
        for _ in range(50):
            async with lock:
                inside += 1
                assert inside == 1
                await lowlevel.wait_readable(pipe[0])
                read.append((number, os.read(pipe[0], 1)))
                inside -= 1
            if len(read) % 3 == number:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(worker, number)
        for _ in range(150):
            os.write(pipe[1], b"x")
            await trio.lowlevel.checkpoint()
    assert len(read) == 150
    assert {number for number, _ in read} == {0, 1, 2}


def test_only_the_waits_are_replaced(lowlevel):
    assert pyfuse3.trio.open_nursery is trio.open_nursery
    assert lowlevel.current_task is trio.lowlevel.current_task
