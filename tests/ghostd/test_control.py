"""The daemon as the API's threads see it: what is answered while the loop is stuck or gone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from blockstore.errors import OrbitError, StorageFailed, StorageFull
from blockstore.ids import ChunkId, pack_name
from ghostd.control import DaemonControl, DaemonGone, Pulse
from ghostd.facade import DaemonState
from ghostd.flusher import Flusher
from ghostd.fuse import RequestCounters
from ghostd.mountpoint import sync_kernel
from ghostd.threads import Inline
from ghostd.writeback import WritebackOptions
from tests.ghostd.world import FOLDER, ROOT, World
from tests.simdisk import SimDisk

pytestmark = pytest.mark.usefixtures("small_scale")

WAIT_S = 20  # for what happens at once, unless something is broken


class Stuck(Inline):
    """Threads whose commits wait at a gate."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()
        self.committing = threading.Event()  # a commit has come to the gate

    async def run(self, kind, function, *args):
        """See Threads."""
        if kind == "commit":
            self.committing.set()
            await self.gate.wait()
        return await super().run(kind, function, *args)


class Daemon:
    """The filesystem's loop in a thread of its own, with the control that the API is given."""

    control: DaemonControl
    world: World
    token: trio.lowlevel.TrioToken

    def __init__(self, mount: Path, interval_s: float = 1_000.0) -> None:
        self._options = WritebackOptions(commit_interval_s=interval_s)
        self.disk = SimDisk(1)
        self.threads = Stuck()
        self.stopped = trio.Event()
        self._mount = mount
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._run))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _run(self) -> None:
        self.world = world = World(self.disk, threads=self.threads, options=self._options)
        self.token = trio.lowlevel.current_trio_token()
        self.requests = RequestCounters()
        flusher = Flusher(lambda: sync_kernel(self._mount, []), world.writeback.commit)
        self.control = DaemonControl(
            mount=self._mount,
            folder=FOLDER,
            keeper=world.keeper,
            reader=world.reader,
            flusher=flusher,
            requests=self.requests,
            pulse=Pulse(),
            waste_max=0.25,
            stop=self.stopped.set,
        )
        try:
            async with world.running(), trio.open_nursery() as nursery:
                nursery.start_soon(flusher.run)
                self._ready.set()
                await self.stopped.wait()
                nursery.cancel_scope.cancel()
        finally:
            world.close()

    def do(self, call: Callable[[], object]) -> None:
        """Call something in the loop and wait for it."""
        trio.from_thread.run_sync(call, trio_token=self.token)

    def write(self, name: bytes, data: bytes) -> None:
        """A file, not committed yet."""

        async def write() -> None:
            ino = self.world.fs.create(1, name, 0o100644, ROOT).ino
            await self.world.fs.write(ino, 0, data)

        trio.from_thread.run(write, trio_token=self.token)

    def close(self) -> None:
        with suppress(trio.RunFinishedError):
            self.do(self.threads.gate.set)
        self.control.stop()  # also when it has stopped
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


def test_status_and_stats_answer_while_the_loop_does_not(daemon: Daemon) -> None:
    daemon.write(b"f", b"x" * 5_000)
    held, release = threading.Event(), threading.Event()

    def block() -> None:
        held.set()
        assert release.wait(WAIT_S)

    daemon.token.run_sync_soon(block)
    assert held.wait(WAIT_S)
    answers: list[object] = []
    asking = threading.Thread(
        target=lambda: answers.extend([daemon.control.status(), daemon.control.stats()])
    )
    asking.start()
    asking.join(WAIT_S)
    release.set()
    assert len(answers) == 2, "it waited for the loop"
    status, stats = answers
    assert status.dirty_bytes == 5_000  # type: ignore[attr-defined]
    assert stats.gauges["inodes"] == 2  # type: ignore[attr-defined]
    assert stats.gauges["dirty_bytes"] == 5_000  # type: ignore[attr-defined]


def test_status_tells_of_a_commit_under_way_and_of_one_that_failed(daemon: Daemon) -> None:
    control = daemon.control
    daemon.write(b"f", b"x" * 5_000)
    gate = trio.Event()
    daemon.do(lambda: setattr(daemon.threads, "gate", gate))
    flushing = threading.Thread(target=lambda: control.flush(WAIT_S))
    flushing.start()
    assert daemon.threads.committing.wait(WAIT_S)
    with pytest.raises(TimeoutError, match="goes on"):
        control.flush(0.01)
    assert control.status().commit.in_flight_s is not None
    daemon.do(gate.set)
    flushing.join(WAIT_S)
    control.flush(WAIT_S)
    status = control.status()
    assert status.commit.in_flight_s is None
    assert status.commit.count == 1
    assert status.dirty_bytes == 0
    assert status.warnings == ()


@pytest.mark.parametrize("error", [StorageFull("no room"), StorageFailed("no answer")])
def test_a_commit_that_failed_is_told_and_forgotten_when_one_succeeds(
    tmp_path: Path, error: OrbitError
) -> None:
    daemon = Daemon(tmp_path, interval_s=0.01)
    control = daemon.control
    try:
        daemon.disk.fail_at(1, error, times=10_000)
        daemon.write(b"g", b"y" * 5_000)
        with pytest.raises(type(error)):
            control.flush(WAIT_S)
        assert str(error) in (control.status().commit.last_error or "")
        assert str(error) in " ".join(control.status().warnings)
        assert control.stats().counters["commit_failures"] >= 1
        daemon.disk.heal()
        with suppress(type(error)):
            control.flush(WAIT_S)  # may share one that had begun to fail
        control.flush(WAIT_S)
        assert control.status().commit.last_error is None
        assert control.status().warnings == ()
        assert control.status().dirty_bytes == 0
    finally:
        daemon.close()


def test_check_and_collect_from_another_thread(daemon: Daemon) -> None:
    control = daemon.control
    daemon.write(b"f", random.Random(1).randbytes(5_000))  # no chunk shares a record
    report = control.check(data=True)
    assert report.ok
    assert report.data
    place = next(iter(daemon.world.namespace.load_segment(2, 0) or b""), None)
    assert place is not None
    dry = control.collect(dry_run=True, waste_max=None)
    assert dry.dry_run
    assert dry.live_chunks > 0
    done = control.collect(dry_run=False, waste_max=0.0)
    assert not done.dry_run
    chunk_id = ChunkId(daemon.world.tree.content(daemon.world.tree.inode(2)).extents(0, 1)[0][2])  # type: ignore[arg-type]
    where = daemon.world.store.locate([chunk_id])[chunk_id]
    daemon.disk.flip(FOLDER / "packs" / pack_name(where.pack), where.offset + 70)
    damaged = control.check(data=True)
    assert not damaged.ok
    assert list(damaged.damaged_files) == ["f"]
    assert control.status().damaged_chunks == 1


def test_free_space_is_looked_at_by_the_loop(daemon: Daemon) -> None:
    daemon.disk.size_bytes = 10 << 20
    daemon.do(daemon.control.note_free_space)
    before = daemon.control.status().free_bytes
    assert 0 < before < 10 << 20
    daemon.disk.size_bytes = 20 << 20
    assert daemon.control.status().free_bytes == before, "status itself does not ask the disk"


def test_a_call_that_the_end_of_the_daemon_overtakes_is_an_error(daemon: Daemon) -> None:
    daemon.write(b"f", b"x" * 5_000)
    daemon.do(lambda: setattr(daemon.threads, "gate", trio.Event()))
    errors: list[BaseException] = []

    def flush() -> None:
        try:
            daemon.control.flush(WAIT_S)
        except BaseException as error:  # noqa: BLE001  also what no caller expects
            errors.append(error)

    waiting = threading.Thread(target=flush)
    waiting.start()
    while daemon.control.status().commit.in_flight_s is None:
        daemon.do(lambda: None)
    daemon.do(daemon.threads.gate.set)
    daemon.control.stop()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert all(isinstance(error, DaemonGone) for error in errors), errors


def test_after_the_end_calls_say_so_and_status_still_answers(daemon: Daemon) -> None:
    control = daemon.control
    control.state = DaemonState.STOPPING
    daemon.close()
    for call in (
        lambda: control.flush(1.0),
        lambda: control.check(data=False),
        lambda: control.collect(dry_run=True, waste_max=0.5),
    ):
        with pytest.raises(DaemonGone, match="stopping"):
            call()
    assert control.status().state is DaemonState.STOPPING
