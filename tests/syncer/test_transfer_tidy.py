"""What a killed writer left does not stay beside the files of the job that comes after it."""

import os
import subprocess
import sys

import pytest

from syncer.context import Context, _Shared
from syncer.engine import run_job
from syncer.events import Silence
from syncer.local_parts import is_part, kept_name, new_part
from syncer.local_tree import LocalTree
from syncer.options import JobSpec, Mode, Options, Verb
from syncer.remote_tree import RemoteTree
from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import Missing
from syncer.remotes.held import Held
from syncer.steps import Step, StepKind, TakenStep
from syncer.transfer_tidy import Tidy
from syncer.tree import Metadata
from tests.remotes.kinds import find_kinds
from tests.syncer.remote_trees import server_of

DEAD = "from syncer.local_parts import PartNames; print(PartNames().new().decode())"


def parts_in(tree):
    """A part of a process that has ended, one that a job may go on with, and one of our own."""
    dead = subprocess.run(
        [sys.executable, "-c", DEAD], check=True, capture_output=True, text=True
    ).stdout.strip()
    return dead.encode(), kept_name(), tree.parts.new()


async def test_a_job_that_goes_on_looks_where_it_writes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    tree = await LocalTree.open(os.fsencode(tmp_path))
    parts = parts_in(tree)
    for folder in ("d", "e"):
        for name in parts:
            (tmp_path / folder / os.fsdecode(name)).touch()
    taken = [TakenStep(1, Step(StepKind.COPY, b"d/file", size=1), 0, None)]
    await Tidy(tree, resumed=False).before(taken)
    assert {os.fsencode(each.name) for each in (tmp_path / "d").iterdir()} == set(parts)
    await Tidy(tree, resumed=True).before(taken)
    assert {os.fsencode(each.name) for each in (tmp_path / "d").iterdir()} == set(parts[1:])
    assert {os.fsencode(each.name) for each in (tmp_path / "e").iterdir()} == set(parts)
    await tree.close()


async def test_another_job_removes_what_it_comes_by(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source / "d", target / "d"):
        folder.mkdir(parents=True)
    (source / "d" / "file").write_text("content")
    tree = await LocalTree.open(os.fsencode(target))
    dead, kept, _ = parts_in(tree)
    await tree.close()
    for name in (dead, kept):
        (target / "d" / os.fsdecode(name)).touch()
    context = Context(state=tmp_path / "state", cache=tmp_path / "cache")
    context.state.mkdir()
    await run_job(JobSpec(Verb.SYNC, str(source), str(target), Options()), context, Silence())
    context.close()
    assert {each.name for each in (target / "d").iterdir()} == {"file", os.fsdecode(kept)}


# ---- at remotes ----

KINDS = {kind.name: kind for kind in find_kinds()}
FOREIGN = b".orbit-00000000-1-1-00000000-0.part"  # another machine's
OLD_S = 8 * 86_400


@pytest.fixture
def bridge():
    bridge = Bridge()
    bridge.start()
    yield bridge
    bridge.stop()


def dead_name():
    ran = subprocess.run([sys.executable, "-c", DEAD], check=True, capture_output=True)
    return ran.stdout.strip()


async def listed(tree, path):
    names = set()

    async def sink(page):
        names.update(node.name for node in page)

    await tree.list(path, sink)
    return names


class Watched(Held):
    """Looks at a folder while it is read."""

    def __init__(self, folder):
        super().__init__(bytes(20 << 20))
        self.folder = folder
        self.seen = set()

    async def read(self, offset, length):
        self.seen |= set(os.listdir(os.fsencode(self.folder)))
        return await super().read(offset, length)


@pytest.mark.parametrize("name", ["sftp", "smb", "file"])
async def test_what_was_left_at_a_remote_goes_and_nothing_else(name, bridge):
    place = server_of(KINDS[name]).place(bridge)
    folder = place.folder / "d"
    folder.mkdir()
    dead, live = dead_name(), new_part()
    old = FOREIGN.replace(b"-0.part", b"-1.part"), b".orbit-%s.part" % (b"0" * 16)
    strangers = {b".orbit-mine.part", b"x"}
    for each in {dead, live, FOREIGN, *old, *strangers}:
        (folder / os.fsdecode(each)).touch()
    long_ago = (folder.stat().st_mtime - OLD_S,) * 2
    for each in old:
        os.utime(folder / os.fsdecode(each), long_ago)
    tree = RemoteTree(await place.open())
    taken = [TakenStep(1, Step(StepKind.COPY, b"d/file", size=1), 0, None)]
    await Tidy(tree, resumed=True).before(taken)
    assert dead in os.listdir(os.fsencode(folder))  # no listing has shown it
    assert await listed(tree, b"d") == strangers
    assert tree.found_parts
    await Tidy(tree, resumed=False).before(taken)
    assert set(os.listdir(os.fsencode(folder))) == {live, FOREIGN, *strangers}
    # That is how files are called here while they are written.
    content = Watched(folder)
    await tree.write(b"d/file", content, Metadata())
    written = {each for each in content.seen if is_part(each)} - {live, FOREIGN}
    assert len(written) == 1
    assert set(os.listdir(os.fsencode(folder))) == {live, FOREIGN, b"file", *strangers}
    await tree.close()


@pytest.mark.parametrize("name", ["sftp", "smb"])
async def test_a_mirror_takes_no_part_for_a_stranger(name, bridge, tmp_path):
    server = server_of(KINDS[name])
    url, given = server.address(bridge)
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_text("content")
    (source / "gone").mkdir()
    (source / "gone" / "file").write_text("content")
    shared = _Shared(machinery=given)
    context = Context(state=tmp_path / "state", cache=tmp_path / "cache", _shared=shared)
    context.state.mkdir()

    async def mirror():
        options = Options(mode=Mode.MIRROR, force=True)
        report = await run_job(JobSpec(Verb.SYNC, str(source), url, options), context, Silence())
        assert (report.outcome, report.failures) == ("done", [])
        return report

    await mirror()
    remote = await context.open_remote(url)
    dead = dead_name()
    left = {b"d/" + dead, b"d/" + FOREIGN, b"gone/" + dead}
    for key in left:
        await remote.write(key, Held(b"half of it"))
    (source / "d" / "file").write_text("more content")
    (source / "gone" / "file").unlink()
    (source / "gone").rmdir()
    report = await mirror()
    assert report.deleted == 2
    tree = RemoteTree(remote)
    assert await listed(tree, b"") == {b"d"}
    assert await listed(tree, b"d") == {b"file"}
    entry = await remote.stat(b"d/" + FOREIGN)
    assert entry.size == len(b"half of it")
    with pytest.raises(Missing):
        await remote.stat(b"d/" + dead)
    await tree.close()


@pytest.mark.parametrize("name", ["sftp", "smb", "s3"])
async def test_what_is_being_written_is_no_source(name, bridge):
    place = server_of(KINDS[name]).place(bridge)
    await place.fill({b"d/" + FOREIGN: b"half", b"d/whole": b"whole"})
    tree = RemoteTree(await place.open())
    assert await listed(tree, b"d") == {b"whole"}
    await tree.close()
