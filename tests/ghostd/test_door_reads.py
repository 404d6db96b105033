"""Small files out of the namespace: together, each as it was seen, none held up by another."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.ids import ChunkId
from ghostd import door_server
from syncer.context import Context
from syncer.door_files import SmallFile
from syncer.engine import run_job
from syncer.events import Report, Silence
from syncer.options import JobSpec, Options, Verb
from syncer.remotes.errors import Busy, Changed, Missing
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.small_reads import read_small
from syncer.tree import Metadata, Whole
from tests.ghostd.test_door import MIB, PLAIN, Doors, opened

ARCHIVE = Options(owners=True, numeric_ids=True, xattrs=True, modes=True, times=True)


@pytest.fixture
def context(tmp_path):
    made = Context(state=tmp_path / "jobs", cache=tmp_path / "cache", mount=b"/mnt", audited=False)
    made.state.mkdir()
    yield made
    made.close()


async def ran(
    context: Context, doors: Doors, verb: Verb, source: str, destination: str = "", **options
) -> Report:
    spec = JobSpec(verb, source, destination, replace(ARCHIVE, **options))
    report = await run_job(spec, replace(context, door=doors.door), Silence())
    assert (report.outcome, report.failures) == ("done", []), report
    return report


async def filled(doors: Doors, count: int, folder: bytes = b"in") -> dict[bytes, bytes]:
    """Small files in the namespace, with attributes; what they hold."""
    rng = random.Random(count)
    contents = {b"d%d/f%d" % (n % 10, n): rng.randbytes(n % 5_000) for n in range(count)}
    files = [
        SmallFile(folder + b"/" + path, data, Metadata(mode=0o640, xattrs={b"user.n": path}))
        for path, data in contents.items()
    ]
    outcomes = await doors.tree.write_many(files)
    assert not [each for each in outcomes if isinstance(each, Exception)]
    return contents


async def test_a_thousand_small_files_cost_a_few_calls(tmp_path, context):
    async with opened(tmp_path / "state") as doors:
        contents = await filled(doors, 1_000)
        requests = doors.door.requests

        async def cost(verb: Verb, *places: str) -> int:
            requests.clear()
            await ran(context, doors, verb, *places)
            return requests.total()

        out, repository = tmp_path / "out", f"repo:{tmp_path}/repository"
        assert await cost(Verb.COPY, "/mnt/in", str(out)) < 60
        for path, data in contents.items():
            where = os.path.join(os.fsencode(out), path)
            assert Path(os.fsdecode(where)).read_bytes() == data  # noqa: ASYNC240
            assert os.getxattr(where, b"user.n") == path
            assert os.stat(where).st_mode & 0o777 == 0o640
        assert await cost(Verb.VERIFY, "/mnt/in", str(out)) < 60
        assert await cost(Verb.BACKUP, "/mnt/in", repository) < 60
        assert await cost(Verb.BACKUP, "/mnt/in", repository) < 60
        await doors.world.check()


async def nodes_of(doors: Doors, paths: Sequence[bytes]):
    return [(path, await doors.tree.stat(path)) for path in paths]


async def test_each_file_fails_alone(tmp_path):
    async with opened(tmp_path) as doors:
        for name in (b"whole", b"changed", b"gone", b"now a folder"):
            await doors.tree.write(name, Held(b"content of " + name), PLAIN)
        await doors.tree.write(b"holes", Held(b"a" + bytes(9_000)), PLAIN, ranges=[(0, 1)])
        names = [b"whole", b"changed", b"gone", b"now a folder", b"holes", b"whole"]
        wanted = await nodes_of(doors, names)
        await doors.tree.set_metadata(b"changed", Metadata(mtime_ns=5))
        for name in (b"gone", b"now a folder"):
            await doors.tree.delete(name, wanted[0][1])
        await doors.tree.mkdir(b"now a folder", PLAIN)
        found = await doors.tree.read_many(wanted, xattrs=False)
        assert found[0] == found[5] == Whole(b"content of whole")
        assert [type(each) for each in found[1:4]] == [Changed, Missing, Changed]
        assert found[4] == Whole(b"a" + bytes(9_000))


async def test_what_is_in_memory_only_is_read_too(tmp_path):
    async with opened(tmp_path) as doors:
        await doors.tree.write(b"f", Held(b"stored"), PLAIN)
        inode = await doors.world.look(b"f")
        await doors.world.fs.write(inode.ino, 3, b"RED, and more")
        wanted = await nodes_of(doors, [b"f"])
        assert await doors.tree.read_many(wanted, xattrs=True) == [Whole(b"stoRED, and more", {})]


async def test_a_damaged_chunk_costs_its_file_only(tmp_path):
    async with opened(tmp_path) as doors:
        rng = random.Random(1)
        contents = {b"f%d" % n: rng.randbytes(10_000) for n in range(3)}
        for name, data in contents.items():
            await doors.tree.write(name, Held(data), PLAIN)
        wanted = await nodes_of(doors, list(contents))
        await doors.world.writeback.commit()
        inode = await doors.world.look(b"f1")
        content = doors.world.tree.content(inode)
        start, end, _, offset = content.extents(0, 10_000)[0]
        content.segments[0] = [(start, end, bytes(ChunkId(b"\1" * 32)), offset)]
        found = await doors.tree.read_many(wanted, xattrs=False)
        assert found[0] == Whole(contents[b"f0"])
        assert isinstance(found[1], Busy)
        assert found[2] == Whole(contents[b"f2"])
        alone = await read_small(doors.tree, wanted, xattrs=False)
        assert alone[0::2] == found[0::2]
        assert "not in the store" in str(alone[1])
        content.segments.clear()


async def test_an_answer_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(door_server, "BYTES_MAX", 25_000)
    async with opened(tmp_path) as doors:
        for number in range(3):
            await doors.tree.write(b"f%d" % number, Held(b"%d" % number * 10_000), PLAIN)
        wanted = await nodes_of(doors, [b"f0", b"f1", b"f2"])
        found = await doors.tree.read_many(wanted, xattrs=False)
        assert isinstance(found[2], Busy)
        whole = await read_small(doors.tree, wanted, xattrs=False)
        assert whole == [Whole(b"%d" % number * 10_000) for number in range(3)]


async def test_many_bytes_are_several_answers(tmp_path):
    async with opened(tmp_path) as doors:
        data = random.Random(2).randbytes(MIB)
        for number in range(9):
            await doors.tree.write(b"f%d" % number, Held(data), PLAIN)
        wanted = await nodes_of(doors, [b"f%d" % number for number in range(9)])
        doors.door.requests.clear()
        assert await doors.tree.read_many(wanted, xattrs=False) == [Whole(data)] * 9
        assert doors.door.requests["read_many"] == 3


async def test_blocks_that_are_far_away_hold_nobody_up(tmp_path):
    remote = MemoryRemote(MemoryServer())
    for name in (b"here", b"far"):
        await remote.write(name, Held(name * 1_000))
    async with opened(tmp_path, {"m://": remote}) as doors:
        await doors.world.project("m://", b"r", mode="ro")
        await doors.tree.write(b"own", Held(b"own"), PLAIN)
        wanted = await nodes_of(doors, [b"r/far", b"r/here", b"own"])
        assert await doors.world.content(b"r/here") == b"here" * 1_000
        found = await doors.tree.read_many(wanted, xattrs=False)
        assert isinstance(found[0], Busy)
        assert found[1:] == [Whole(b"here" * 1_000), Whole(b"own")]
        whole = await read_small(doors.tree, wanted, xattrs=False)
        assert whole == [Whole(b"far" * 1_000), *found[1:]]
