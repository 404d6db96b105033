"""What happens to both ends while a job runs: sources that change, destinations that fill or go."""

import os
import random
import shutil
import subprocess

import pytest

from syncer.context import Context
from syncer.engine import Control, run_job
from syncer.events import Silence
from syncer.options import JobSpec, Mode, Options, Verb

FILES = 60
LEFT_MAX = 2 * 16  # that may be under way when a job is told to end


class Acting(Silence):
    """Does something once, when so many files have been copied."""

    files = True

    def __init__(self, act, after=3):
        self.copied = 0
        self._act = act
        self._after = after

    def event(self, event):
        if event.event == "file.copied":
            self.copied += 1
            if self.copied == self._after:
                self._act()


@pytest.fixture
def context(tmp_path):
    made = Context(state=tmp_path / "state", cache=tmp_path / "cache", audited=False, wait_s=0.1)
    made.state.mkdir()
    yield made
    made.close()


@pytest.fixture
def source(tmp_path):
    chance = random.Random(1)
    folder = tmp_path / "source"
    for number in range(FILES):
        path = folder / f"d{number % 3}" / f"f{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(100_000))
    return folder


def read(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def sync(context, source, target, tell=None, control=None, **options):
    # With a rate files go one by one, as they do to slow places: something happens in between.
    options = {"bandwidth": "400M", "durable": False, "parallel": 2, "reserve_bytes": 0, **options}
    spec = JobSpec(Verb.SYNC, str(source), str(target), Options(**options))
    return await run_job(spec, context, tell or Silence(), control=control)


async def test_a_source_that_changes_is_copied_whole(context, source, tmp_path):
    target, before = tmp_path / "target", read(source)

    def change():
        for path in source.rglob("f*"):
            path.write_bytes(b"changed " + path.read_bytes()[:70_000])

    report = await sync(context, source, target, Acting(change))
    assert report.outcome == "done", report.failures
    after = read(source)
    found = read(target)
    assert found.keys() == after.keys()
    assert all(data in {before[name], after[name]} for name, data in found.items())
    assert any(data == after[name] for name, data in found.items())
    await sync(context, source, target)
    assert read(target) == after


async def test_sources_that_vanish_fail_alone_and_nothing_is_deleted(context, source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "extra").write_text("kept")
    report = await sync(
        context, source, target, Acting(lambda: shutil.rmtree(source / "d2")),
        mode=Mode.MIRROR, delete_max=99,
    )  # fmt: skip
    assert (report.outcome, report.deleted) == ("partly", 0)
    assert report.files_copied + report.failed == FILES
    assert all(each.path.startswith("d2/") for each in report.failures)
    assert (target / "extra").exists()
    report = await sync(context, source, target, mode=Mode.MIRROR, delete_max=99)
    assert report.outcome == "done", report.failures
    assert read(target) == read(source)


async def test_a_destination_that_is_removed(context, source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    report = await sync(context, source, target, Acting(lambda: shutil.rmtree(target)))
    assert report.outcome == "partly"
    assert report.failed
    report = await sync(context, source, target)
    assert report.outcome == "done", report.failures
    assert read(target) == read(source)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FILES * 110_000}", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_destination_that_fills_up(context, source, small_disk):
    """Somebody else takes the room after the job has begun."""
    hog = small_disk / "hog"

    def fill():
        room = os.statvfs(small_disk)
        with hog.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)

    report = await sync(context, source, small_disk, Acting(fill))
    assert report.outcome == "partly"
    assert report.failed >= FILES - report.files_copied > 0
    assert all(each.transient for each in report.failures)
    hog.unlink()
    content = read(source)
    for name, data in read(small_disk).items():
        assert data == content[name], name
    report = await sync(context, source, small_disk)
    assert report.outcome == "done", report.failures
    assert read(small_disk) == content


@pytest.mark.parametrize("bandwidth", ["", "400M"])
async def test_cancelling_stops_the_work(context, source, tmp_path, bandwidth):
    target, control = tmp_path / "target", Control()
    tell = Acting(lambda: control.stop("cancelled"), after=1)
    report = await sync(context, source, target, tell, control, bandwidth=bandwidth, parallel=1)
    assert report.outcome == "cancelled"
    content = read(source)
    for name, data in read(target).items():
        assert data == content[name], name
    if bandwidth:  # without a rate all of these files are one batch
        assert tell.copied <= LEFT_MAX
    await sync(context, source, target)
    assert read(target) == content
