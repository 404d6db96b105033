"""`ProjectionControl` from another thread, as the API calls it, over a running loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import trio

from ghostd.errors import NotFound
from ghostd.in_loop import DaemonGone
from ghostd.projection_control import NothingRemote, ProjectionControl
from ghostd.projection_facade import Attach
from ghostd.projections import LocalChanges, NoProjection
from syncer.remotes.errors import Unreachable
from tests.ghostd.world import ROOT
from tests.projections.test_projected import DATA, Setting
from tests.projections.tools import ROOT_URL, Tools
from tests.projections.world import ProjectedWorld

WAIT_S = 20


class Running:
    """A loop in a thread of its own, with the control that the API is given."""

    control: ProjectionControl
    world: ProjectedWorld

    def __init__(self) -> None:
        self.setting = Setting()
        self.setting.clock.now = 1_700_000_000 * 10**9
        self._ready = threading.Event()
        self._stop = trio.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._run))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _run(self) -> None:
        for name in (b"a", b"d/caf\xe9", b"d/100%"):
            await self.setting.put(name, DATA)
        self.world = world = self.setting.world()
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with world.running(), trio.open_nursery() as nursery:
                works = Tools(world).works
                await nursery.start(works.run)
                self.control = ProjectionControl(
                    world.projected,
                    world.writeback,
                    works,
                    lambda *_: None,
                    trio.lowlevel.checkpoint,
                )
                self._ready.set()
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            world.close()

    def do(self, call: Callable[[], object]) -> object:
        """Call something in the loop."""
        return trio.from_thread.run_sync(call, trio_token=self._token)

    def close(self) -> None:
        with suppress(trio.RunFinishedError):
            self.do(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


def test_a_projections_life(running: Running) -> None:
    control = running.control
    made = control.project(Attach(ROOT_URL, "/r%FF/", mode="cow"))
    assert (made.path, made.state, made.mode) == ("/r%FF", "ok", "cow")
    assert [each.path for each in control.projections().projections] == ["/r%FF"]
    assert control.refresh("/r%FF", recursive=False).directories == 1
    assert control.residency(["/r%FF"]).paths[0].files == 1
    work = control.start_work("pin", ["/r%FF"])
    while control.work(work.id).state == "running":
        running.do(lambda: None)
    assert control.work(work.id).bytes_done == 3 * len(DATA)
    assert control.residency(["/r%FF/d/caf%E9"]).paths[0].pinned_files == 1
    assert control.evict(["/r%FF"]).pinned_files == 3
    assert control.unpin(["/r%FF/d"]).files == 2
    assert control.stop_work(work.id).state == "done"
    assert control.counters()["fetched_bytes"] > len(DATA)
    assert control.gauges()["projections"] == 1
    assert control.refresh("/r%FF", recursive=True).directories == 2
    assert control.refresh("/r%FF/d/100%25", recursive=False).files == 1
    assert control.unproject("/r%FF", force=False).path == "/r%FF"
    assert control.projections().projections == ()


def test_changes_and_their_words(running: Running) -> None:
    control = running.control
    control.project(Attach(ROOT_URL, "/r", mode="cow"))
    control.refresh("/r", recursive=False)

    def change() -> None:
        fs, world = running.world.fs, running.world
        top = world.resolve(b"/r").ino
        fs.create(top, b"new", 0o100644, ROOT)
        fs.rename(top, b"a", top, b"b\xff")

    running.do(change)
    found = control.diff("/r", cursor=None, limit=10)
    assert found.cursor is None
    words = [(each.kind, each.path, each.source) for each in found.changes]
    assert sorted(words) == [("added", "/r/new", None), ("renamed", "/r/b%FF", "/r/a")]
    with pytest.raises(LocalChanges):
        control.unproject("/r", force=False)
    assert control.revert("/r").changes == 2
    assert control.diff("/r", cursor=None, limit=10).changes == ()
    with pytest.raises(NoProjection):
        control.diff("/", cursor=None, limit=10)


def test_the_place_of_a_single_file_is_known_also_after_a_move(running: Running) -> None:
    control = running.control
    fs = running.world.fs
    running.do(lambda: fs.create(1, b"dir", 0o40755, ROOT))
    running.world.remotes["memory:///b"] = _File(running.setting)
    control.project(Attach("memory:///b", "/dir/file"))
    assert control.projections().projections[0].path == "/dir/file"
    running.do(lambda: fs.rename(1, b"dir", 1, b"moved"))
    control.unpin(["/moved"])  # commits
    assert control.projections().projections[0].path == "/moved/file"
    again = ProjectionControl  # as after a restart: nothing is remembered
    fresh = running.do(
        lambda: again(
            running.world.projected,
            running.world.writeback,
            control._works,
            lambda *_: None,
            trio.lowlevel.checkpoint,
        )
    )
    assert fresh.projections().projections[0].path == "/moved/file"


class _File:
    """A remote that is one file."""

    def __init__(self, setting: Setting) -> None:
        self._remote = setting.user
        self.url = "memory:///b"

    async def stat(self, _key):
        entry = await self._remote.stat(b"a")
        return type(entry)(key=b"", kind=entry.kind, size=entry.size, etag=entry.etag)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


def test_remotes_in_trouble_are_told_without_the_loop(running: Running) -> None:
    control = running.control
    control.project(Attach(ROOT_URL, "/r"))
    control.refresh("/r", recursive=False)
    assert control.problems() == ()
    running.setting.fail = Unreachable("nobody home")
    assert "nobody home" in control.refresh("/r", recursive=False).waiting
    (problem,) = control.problems()
    assert (problem.url, problem.state) == (ROOT_URL, "stale")
    assert "nobody home" in problem.reason
    assert problem.cure
    info = control.projections().projections[0]
    assert (info.state, info.reason) == ("stale", problem.reason)
    running.setting.fail = None
    control.refresh("/r", recursive=False)
    assert control.problems() == ()


def test_wrong_paths_are_named(running: Running) -> None:
    control = running.control
    running.do(lambda: running.world.fs.create(1, b"own", 0o40755, ROOT))
    with pytest.raises(NotFound, match="/none"):
        control.evict(["/none"])
    with pytest.raises(NothingRemote, match="/own"):
        control.refresh("/own", recursive=False)
    with pytest.raises(NoProjection):
        control.unproject("/own", force=True)


def test_after_the_end_calls_say_so(running: Running) -> None:
    control = running.control
    running.close()
    with pytest.raises(DaemonGone):
        control.projections()
    assert control.works().works == ()
