"""Groups on projections as they grow, and on what a stream from a remote does to other work."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.bench import work
from tests.bench.bench import Bench, Group, Row
from tests.bench.populate import populate_projection
from tests.bench.processes import run
from tests.bench.remote_systems import PROJECTED, Projection
from tests.bench.served import STREAM, Link, Served, served
from tests.bench.systems import OURS

LIMIT_S = 900.0
_PREFIX = "many"
_PAGE = 1000  # keys of one answer
_FOLDERS = 100
_IDLE_STATS = 1000
_BUSY_STATS = 30  # at least; as many as fit into the stream


# --- many entries --------------------------------------------------------------------------------


def _scale(bench: Bench) -> None:
    objects, entries = bench.size(200_000, 5_000), bench.size(1_000_000, 100_000)
    with served(bench) as what, what.links(0.0) as links:
        started = time.monotonic()
        what.add_objects(_PREFIX, objects)
        seconds = time.monotonic() - started
        bench.record.facts["remote-scale"] = (
            f"{objects:,} empty objects under one prefix, made in {seconds:.0f} s; "
            f"{entries:,} entries written into the namespace."
        )
        _objects(bench, links["s3"], objects)
        _cached(bench, links["s3"], entries)


def _objects(bench: Bench, link: Link, objects: int) -> None:
    """Project a prefix, list it, and list it again after a restart."""
    system = Projection(bench.disk, bench.peers, link.place, attached=False)
    with bench.cleared([system]):
        for _ in bench.in_turn([system]):
            with bench.attempt(system):
                system.start()
                bench.note("project", system, _project(system, link.place.url(f"{_PREFIX}/")))
                before = link.settled()
                bench.note("list", system, _list(system, objects), amount=objects)
                requests = (link.settled() - before).requests
                bench.note("list-requests", system, requests, amount=-(-objects // _PAGE))
                bench.note("list-rss", system, system.rss_bytes())
                system.stop()
                _restarted(bench, system, link, "objects", objects)
                system.clear()


def _project(system: Projection, url: str) -> float:
    """`orbit-ctl project`, as a whole program."""
    control = [sys.executable, "-m", "cli.orbit_ctl", "--socket", system.daemon.socket]
    root = Path(__file__).parents[2]
    step = ["project", "--ttl", "1h", url, system.top]
    return run(*control, *step, limit_s=LIMIT_S, cwd=root).seconds


def _cached(bench: Bench, link: Link, entries: int) -> None:
    """Start with entries that an earlier run has listed."""
    system = Projection(bench.disk, bench.peers, link.place, attached=False)
    with bench.cleared([system]), bench.attempt(system):
        system.start()
        system.stop()
        url = link.place.url(f"{_PREFIX}/")
        populate_projection(system.data, PROJECTED, url, _FOLDERS, entries // _FOLDERS)
        for _ in bench.in_turn([system]):
            _restarted(bench, system, link, "cached", entries)


def _restarted(bench: Bench, system: Projection, link: Link, key: str, files: int) -> None:
    bench.disk.drop_caches()
    # Once with the interpreter's files in memory again, as after any earlier start.
    system.start()
    system.stop()
    before = link.settled()
    started = time.perf_counter()
    system.start()
    bench.note(f"{key}-start", system, time.perf_counter() - started)
    bench.note(f"{key}-rss", system, system.rss_bytes())
    bench.note(f"{key}-list", system, _list(system, files), amount=files)
    bench.note(f"{key}-rss-listed", system, system.rss_bytes())
    bench.note(f"{key}-requests", system, (link.settled() - before).requests)
    system.stop()


def _list(system: Projection, files: int) -> float:
    done = run("find", system.top, "-type", "f", "-printf", "%s\n", limit_s=LIMIT_S)
    found = done.output.count("\n")
    assert found == files, f"find showed {found} files instead of {files}"
    return done.seconds


REMOTE_SCALE = Group(
    "remote-scale",
    "A prefix of 200,000 objects projected, and 1,000,000 entries that were listed before "
    "(quick: 5,000 and 100,000)",
    (
        Row("project", "orbit-ctl project, the program's own start included"),
        Row("list", "first find with stat: files", "/s"),
        Row("list-requests", "the same: requests for each page of 1,000", "each"),
        Row("list-rss", "resident memory after it", "MiB"),
        *(
            Row(f"{key}-{row}", f"{label}: {what}", show)
            for key, label in (("objects", "these objects"), ("cached", "1,000,000 entries"))
            for row, what, show in (
                ("start", "restart until ready", "s"),
                ("rss", "resident memory after it", "MiB"),
                ("list", "find with stat: files", "/s"),
                ("rss-listed", "resident memory after it", "MiB"),
                ("requests", "requests since the restart", "times"),
            )
        ),
    ),
    _scale,
    (OURS,),
    note="S3. The start includes the interpreter's.",
)


# --- beside a stream -----------------------------------------------------------------------------


def _beside(bench: Bench) -> None:
    with served(bench) as what:
        what.add_big(STREAM, bench.size(1 << 30, 128 << 20), 32)
        for name in bench.in_turn([Projection(bench.disk, bench.peers, what.direct["s3"])]):
            for kind in what.direct:
                with bench.attempt(name):
                    _beside_one(bench, what, kind)


def _beside_one(bench: Bench, what: Served, kind: str) -> None:
    system = Projection(bench.disk, bench.peers, what.direct[kind])
    with bench.cleared([system]):
        system.start()
        own, stream = system.mount / "own", system.top / STREAM
        own.write_bytes(b"of our own")
        system.settle()
        nothing = system.mount / "none"
        for key, count, path in (("idle", _IDLE_STATS, nothing), ("busy", _BUSY_STATS, stream)):
            answer = work.call("stat-latency", own, count, path, limit_s=LIMIT_S)
            bench.note(f"{kind}-{key}", system, answer["median_s"])
            bench.note(f"{kind}-{key}-p99", system, answer["p99_s"])
        size = stream.stat().st_size
        bench.note(f"{kind}-stream", system, answer["seconds"], amount=size)


BESIDE = Group(
    "remote-stat",
    "stat of a local file while another is streamed from a remote (full run: 1 GiB)",
    tuple(
        Row(f"{kind}-{key}", f"{label}: {what}", show)
        for kind, label in (("sftp", "SFTP"), ("s3", "S3"))
        for key, what, show in (
            ("idle", "idle, median", "ms"),
            ("busy", "beside the stream, median", "ms"),
            ("idle-p99", "idle, 99th percentile", "ms"),
            ("busy-p99", "beside the stream, 99th percentile", "ms"),
            ("stream", "the stream, cold", "MB/s"),
        )
    ),
    _beside,
    (OURS,),
    note="statx with AT_STATX_FORCE_SYNC, which the kernel does not answer from memory, every "
    "millisecond; the file is read by dd.",
)
