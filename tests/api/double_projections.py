"""`ProjectionCalls` for tests of the API: answers with given values and passes calls on."""

from dataclasses import replace

from ghostd.projection_facade import (
    Change,
    Diff,
    Evicted,
    ProjectionInfo,
    ProjectionList,
    Refreshed,
    RemoteProblem,
    Residency,
    ResidencyReport,
    Reverted,
    Unpinned,
    WorkError,
    WorkList,
    WorkProgress,
)
from ghostd.warming import NoWork

INFO = ProjectionInfo(
    url="s3://bucket/prefix",
    path="/data",
    mode="cow",
    ttl_s=60.0,
    block_bytes=1 << 20,
    options={"region": "eu-west-1"},
    configured=False,
    age_s=7200.0,
    listed_age_s=5.0,
    state="ok",
    since_s=None,
    reason="",
    cure="",
    left_out=0,
    conflicts=0,
)
FAILING = replace(
    INFO,
    url="sftp://host/tree",
    path="/caf%E9",
    mode="ro",
    options={},
    listed_age_s=None,
    state="failing",
    since_s=300.0,
    reason="sftp://host/tree: connection refused",
    cure="see whether the server runs",
    left_out=2,
    conflicts=1,
)
PROBLEM = RemoteProblem("sftp://host/tree", "failing", 300.0, "connection refused", "start it")
WORK = WorkProgress(
    id=3,
    kind="warm",
    paths=("/data",),
    state="running",
    listed=False,
    files=10,
    files_done=4,
    bytes=4096,
    bytes_done=1024,
    bytes_fetched=512,
    errors=0,
    last_errors=(),
    current="/data/f",
    reason="",
    seconds=1.5,
)
DONE = replace(
    WORK, state="done", listed=True, files_done=10, bytes_done=4096, bytes_fetched=4096, current=""
)
FAILED = replace(
    DONE, state="failed", errors=1, last_errors=(WorkError("/data/x", "gone"),), reason="no room"
)
CHANGES = (
    Change("added", "/data/new", None, False, 3, True, False),
    Change("renamed", "/data/d/b%25", "/data/b", True, 5, True, False),
    Change("deleted", "/data/gone", None, None, None, False, False),
    Change("modified", "/data/%1B[31m", None, False, 7, True, True),
)


class DoubleProjections:
    """Counts its calls with those of the double control, and waits and fails as that does."""

    def __init__(self, control) -> None:
        self._control = control
        self._pass = control._pass
        self.found = (INFO, FAILING)
        self.wrong: tuple[RemoteProblem, ...] = ()
        self.answers = [WORK, DONE]  # of `work`, in turn; the last one again and again
        self.pages = [Diff(CHANGES[:2], "1:-"), Diff(CHANGES[2:], None)]

    def problems(self):
        return self.wrong

    def counters(self):
        return {"fetched_blocks": 7}

    def gauges(self):
        return {"projections": len(self.found)}

    def works(self):
        return WorkList((DONE, replace(FAILED, id=2, kind="pin")))

    def work(self, number):
        if number != WORK.id:
            raise NoWork(f"there is no work {number}")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def projections(self):
        self._pass("projections")
        return ProjectionList(self.found)

    def project(self, wanted):
        self._pass("project", wanted)
        return replace(INFO, url=wanted.url, path=wanted.path, mode=wanted.mode)

    def unproject(self, path, *, force):
        self._pass("unproject", path, force)
        return replace(INFO, path=path)

    def refresh(self, path, *, recursive):
        self._pass("refresh", path, recursive)
        return Refreshed(directories=3, files=0, waiting="", seconds=0.1)

    def residency(self, paths):
        self._pass("residency", list(paths))
        found = Residency("", 10, 2, 1, 4096, 1024, 1, 512, 1, 100)
        return ResidencyReport(tuple(replace(found, path=path) for path in paths))

    def start_work(self, kind, paths):
        self._pass(kind, list(paths))
        return replace(WORK, kind=kind)

    def stop_work(self, number):
        self._pass("stop_work", number)
        self.work(number)
        return replace(WORK, state="stopped")

    def unpin(self, paths):
        self._pass("unpin", list(paths))
        return Unpinned(files=5)

    def evict(self, paths):
        self._pass("evict", list(paths))
        return Evicted(files=2, blocks=3, bytes=3 << 20, pinned_files=1, seconds=0.1)

    def diff(self, path, *, cursor, limit):
        self._pass("diff", path, cursor, limit)
        return self.pages[0 if cursor is None else 1]

    def revert(self, path):
        self._pass("revert", path)
        return Reverted(changes=4, directories=2, waiting="", seconds=0.1)
