"""Jobs from their words to their report: what ends how, and what survives what."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blockstore.errors import StorageFull
from syncer.bandwidth import BadRate, Bandwidth
from syncer.context import Context
from syncer.ends import Ends
from syncer.engine import Control, Run, run_job
from syncer.events import Event, Report, Silence, event_fields, timestamp
from syncer.guardian import End, Surroundings
from syncer.job_states import JobState
from syncer.jobs import Jobs
from syncer.jobs_errors import BadJob, NotNow
from syncer.limit import Limit
from syncer.local_tree import LocalTree
from syncer.options import JobSpec, Mode, Options, Verb
from syncer.steps import Step, StepKind
from syncer.transfer import MAKING
from syncer.transfer_job import _TreesJob
from syncer.transfer_ledger import MemoryLedger
from syncer.transfer_meter import Meter
from syncer.transfer_tuning import tune_while_running
from syncer.transfer_way import transfer_of
from syncer.tree import Features, Node, NodeKind
from syncer.tuning import tune
from tests.syncer.differential.trees import change_tree, make_tree, seen
from tests.syncer.jobs_host import Machine

ROOT = Path(__file__).parents[2]
ARCHIVE = Options(mode=Mode.MIRROR, force=True, owners=True, numeric_ids=True, xattrs=True)


class Log(Silence):
    files = True

    def __init__(self):
        self.events = []

    def event(self, event):
        self.events.append(event)


@pytest.fixture
def context(tmp_path):
    made = Context(state=tmp_path / "state", cache=tmp_path / "cache")
    made.state.mkdir()
    yield made
    made.close()


async def sync(context, source, target, tell=None, verb=Verb.SYNC, dry_run=False, **options):
    options.setdefault("durable", False)
    spec = JobSpec(verb, str(source), str(target), Options(**options))
    return await run_job(spec, context, tell or Silence(), dry_run=dry_run)


@pytest.fixture
def folders(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "d").mkdir()
    (source / "d" / "f").write_text("content")
    (source / "g").write_text("more")
    return source, target


async def test_a_dry_run_tells_what_a_run_does_and_writes_nothing(context, folders):
    source, target = folders
    log, ran = Log(), Log()
    planned = await sync(context, source, target, log, dry_run=True)
    assert not target.exists()
    report = await sync(context, source, target, ran)
    told = {
        (each.event.removeprefix("would."), each.destination)
        for each in log.events
        if each.event.startswith("would.")
    }
    done = {
        (each.event, each.destination)
        for each in ran.events
        if each.event.startswith(("file", "directory", "metadata"))
    }
    assert told == done
    counted = ("files_copied", "directories_made", "files_seen", "bytes_moved")
    assert [getattr(planned, name) for name in counted] == [
        getattr(report, name) for name in counted
    ]


async def test_mirror_deletes_last_and_not_more_than_allowed(context, folders):
    source, target = folders
    await sync(context, source, target)
    for number in range(8):
        (target / f"extra{number}").write_text("x")
    report = await sync(context, source, target, mode=Mode.MIRROR)
    assert (report.deleted, report.deletions_withheld, report.exit_code) == (0, 8, 1)
    assert len(os.listdir(target)) == 10
    report = await sync(context, source, target, mode=Mode.MIRROR, delete_max=8)
    assert (report.deleted, report.exit_code) == (8, 0)


async def test_nothing_is_deleted_when_something_could_not_be_copied(context, folders):
    source, target = folders
    await sync(context, source, target)
    (target / "extra").write_text("the last copy, perhaps")
    (source / ("n" * 255)).mkdir()
    (source / "new").write_text("x")

    class Removing(Log):
        """Takes a file away when the plan is known."""

        def event(self, event):
            if event.event == "job.planned":
                (source / "new").unlink()

    report = await sync(context, source, target, Removing(), mode=Mode.MIRROR, delete_max=5)
    assert (report.failed, report.deletions_withheld, report.outcome) == (1, 1, "partly")
    assert (target / "extra").exists()


async def test_what_makes_no_sense_is_refused(context, folders):
    source, target = folders
    report = await sync(context, source, source / "d" / "inside")
    assert (report.outcome, report.exit_code) == ("failed", 2)
    assert "inside the source" in report.failures[0].error
    assert not (source / "d" / "inside").exists()
    report = await sync(context, source, target, mode=Mode.UPDATE, times=False)
    assert "--mode update" in report.failures[0].error
    assert not target.exists()


async def test_no_source(context, tmp_path):
    report = await sync(context, tmp_path / "nothing", tmp_path / "target")
    assert report.exit_code == 2
    assert not (tmp_path / "target").exists()


async def test_a_single_file(context, folders):
    source, target = folders
    report = await sync(context, source / "g", target, verb=Verb.COPY)
    assert (target.read_text(), report.files_copied) == ("more", 1)
    report = await sync(context, source / "g", target, verb=Verb.COPY)
    assert (report.files_copied, report.files_equal) == (0, 1)
    target.unlink()
    target.mkdir()
    await sync(context, source / "g", target, verb=Verb.COPY)
    assert (target / "g").read_text() == "more"


@pytest.mark.parametrize("bandwidth", ["", "100M"])
async def test_verify_while_copying_and_the_verb(context, folders, bandwidth):
    source, target = folders
    log = Log()
    report = await sync(context, source, target, log, verify=True, bandwidth=bandwidth)
    assert report.outcome == "done"
    checksums = [each.checksum for each in log.events if each.event == "file.copied"]
    assert all(each.startswith("blake3:") for each in checksums)
    assert len(checksums) == 2
    same = await sync(context, source, target, verb=Verb.VERIFY)
    assert (same.outcome, same.files_equal) == ("done", 2)
    found = (target / "g").stat()
    (target / "g").write_text("MORE")
    os.utime(target / "g", ns=(found.st_atime_ns, found.st_mtime_ns))
    differs = await sync(context, source, target, verb=Verb.VERIFY)
    assert (differs.outcome, differs.exit_code, differs.differences) == ("differs", 3, 1)


async def test_the_trash_takes_what_is_replaced_and_deleted(context, folders):
    source, target = folders
    await sync(context, source, target)
    (target / "extra").write_text("extra")
    (source / "g").write_text("new content")
    report = await sync(context, source, target, mode=Mode.MIRROR, trash=".trash", delete_max=5)
    assert report.outcome == "done"
    assert (target / "g").read_text() == "new content"
    assert (target / ".trash" / "g").read_text() == "more"
    assert (target / ".trash" / "extra").read_text() == "extra"
    again = await sync(context, source, target, mode=Mode.MIRROR, trash=".trash")
    assert (again.files_copied, again.deleted, again.trashed) == (0, 0, 0)


async def test_smart_moves_what_changed(context, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    content = random.Random(1).randbytes(12 << 20)
    (source / "image.img").write_bytes(content)
    (source / "z.conf").write_text("x")
    await sync(context, source, target)
    (source / "image.img").write_bytes(content[: 5 << 20] + b"inserted" + content[5 << 20 :])
    (source / "z.conf").write_text("changed")
    log = Log()
    report = await sync(context, source, target, log, smart=True)
    assert (target / "image.img").read_bytes() == (source / "image.img").read_bytes()
    assert report.bytes_moved < 2 << 20
    copied = [each.destination for each in log.events if each.event == "file.copied"]
    assert copied == ["z.conf", "image.img"]


async def test_cancel_ends_soon_and_leaves_no_half_file(context, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "big").write_bytes(random.Random(1).randbytes(32 << 20))
    control = Control()

    class Cancelling(Silence):
        def progress(self, progress):
            if progress.bytes_done:
                control.stop("cancelled")

    spec = JobSpec(Verb.COPY, str(source), str(target), Options(bandwidth="8M"))
    report = await run_job(spec, context, Cancelling(), control=control)
    assert (report.outcome, report.exit_code) == ("cancelled", 2)
    assert os.listdir(target) == []


async def test_a_full_destination_is_told_before_a_byte_moves(context, folders):
    source, target = folders
    free = os.statvfs(source).f_bavail * os.statvfs(source).f_frsize
    report = await sync(context, source, target, reserve_bytes=free * 2)
    assert report.exit_code in {1, 2}
    assert report.files_copied == 0
    assert "stay free" in report.failures[-1].error


async def test_the_audit_trail_has_every_operation(context, folders):
    from syncer.audit_verify import show, verify

    source, target = folders
    await sync(context, source, target)
    (source / "g").unlink()
    await sync(context, source, target, mode=Mode.MIRROR, delete_max=5)
    context.close()
    events = [(each["event"], each["destination"]) for each in show(context.state / "audit")]
    assert ("file.copied", f"{target}/d/f") in events
    assert ("name.deleted", f"{target}/g") in events
    assert verify(context.state / "audit").problem is None


async def test_ignore_files_hold_in_backups_of_remotes(context, tmp_path):
    """The same of a folder, and of the same folder as a remote."""
    source = tmp_path / "source"
    for folder in ("", "a", "a/b", "c"):
        (source / folder).mkdir(exist_ok=True)
        for name in ("kept", "x.tmp", "y.log"):
            (source / folder / name).write_text("content")
    (source / ".orbitignore").write_text("*.tmp\n")
    (source / "a" / ".gitignore").write_text("*.log\n!x.tmp\nb/kept\n")
    seen_of = []
    for place in (str(source), source.as_uri()):
        repository = f"repo:{tmp_path}/repo{len(seen_of)}"
        options = Options(filters=("gitignore",))
        report = await run_job(JobSpec(Verb.BACKUP, place, repository, options), context, Silence())
        assert report.outcome == "done", report.failures
        back = tmp_path / f"back{len(seen_of)}"
        spec = JobSpec(Verb.RESTORE, f"{repository}#latest", str(back))
        report = await run_job(spec, context, Silence())
        assert report.outcome == "done", report.failures
        seen_of.append({str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()})
    assert seen_of[0] == seen_of[1] == {
        ".orbitignore", "kept", "y.log", "c/kept", "c/y.log", "a/.gitignore", "a/kept", "a/x.tmp",
        "a/b/x.tmp",
    }  # fmt: skip


@pytest.mark.parametrize("verb", [Verb.COPY, Verb.VERIFY, Verb.BACKUP, Verb.RESTORE])
async def test_every_verb_takes_its_bytes_from_the_bucket(context, tmp_path, verb):
    """From that of the process, above the job's own."""

    class Counting(Bandwidth):
        taken = 0

        async def take(self, count):
            self.taken += count
            await super().take(count)

    source, target, repository = tmp_path / "source", tmp_path / "target", f"repo:{tmp_path}/repo"
    source.mkdir()
    for name, size in (("large", 9 << 20), ("small", 1 << 10)):
        (source / name).write_bytes(random.Random(name).randbytes(size))
    if verb is Verb.VERIFY:
        await sync(context, source, target)
    if verb is Verb.RESTORE:
        await sync(context, source, repository, verb=Verb.BACKUP)
    bucket = Counting(float(1 << 40))
    where = replace(context, bandwidth=bucket)
    match verb:
        case Verb.BACKUP:
            report = await sync(where, source, repository, verb=verb)
        case Verb.RESTORE:
            report = await sync(where, f"{repository}#latest", target, verb=verb)
        case _:
            report = await sync(where, source, target, verb=verb)
    assert report.outcome == "done", report.failures
    assert bucket.taken >= (9 << 20) + (1 << 10)


async def test_names_that_become_one_are_told_before_a_byte_moves(context, tmp_path):
    """At a destination that takes `a` and `A` for the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "d").mkdir(parents=True)
    for name in ("a", "A", "b", "d/É", "d/é"):
        (source / name).write_text(name)
    log = Log()
    spec = JobSpec(Verb.COPY, "a", "b", Options(durable=False))
    run = Run(spec, context, log, Report("copy", "", ""), Meter(), False, None, None)
    features = replace(LocalTree(b"/").features, case_sensitive=False)
    trees = LocalTree(os.fsencode(source)), LocalTree(os.fsencode(target), features=features)
    await _TreesJob(run, Ends(*trees), End(features), Surroundings.look()).carry_out()
    assert run.report.failed == 2
    assert "the same name" in run.report.failures[0].error
    names = [each.event for each in log.events]
    assert names.index("file.failed") < names.index("job.planned") < names.index("file.copied")
    copied = {each.destination for each in log.events if each.event == "file.copied"}
    assert len(copied) == 3
    assert "b" in copied


async def test_smart_looks_at_what_a_name_does_not_say(context, tmp_path):
    """What the config says of names comes first, then names, then the first bytes."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10))
    (source / "log").write_bytes(b"\xfebin" + bytes(5_000))
    (source / "text").write_bytes(bytes(100))
    (source / "conf.ini").write_bytes(bytes(6_000))
    (source / "mine.mp4").write_bytes(bytes(7_000))
    (source / "empty").write_bytes(b"")
    log = Log()
    where = replace(context, classes=(("*.mp4", "critical"),))
    report = await sync(where, source, target, log, smart=True)
    assert report.outcome == "done"
    copied = [each.destination for each in log.events if each.event == "file.copied"]
    assert copied == ["conf.ini", "mine.mp4", "log", "empty", "text", "picture"]


async def test_the_audit_trail_is_sealed_at_the_end_of_a_job(context, folders):
    """Without closing anything: what a power cut right after it would leave."""
    source, target = folders
    await sync(context, source, target)
    folder = context.state / "audit"
    head = json.loads((folder / "audit.head").read_bytes().splitlines()[0])
    assert head["sequence"] == sum(
        len(log.read_bytes().splitlines()) for log in folder.glob("*.log")
    )
    assert head["sequence"] >= 3


async def test_files_at_a_time_follow_what_the_run_shows(context, autojump_clock):
    """Each file takes a second at the remote, however many there are: more at a time is faster."""
    names = [b"%d" % number for number in range(800)]

    class Slow:
        label = "slow"
        features = Features(write=True)

        def __init__(self):
            self.at_once = self.at_most = 0

        async def write(self, path, content, metadata, **more):
            self.at_once += 1
            self.at_most = max(self.at_most, self.at_once)
            await trio.sleep(1)
            self.at_once -= 1
            return Node(path, NodeKind.FILE, content.size)

    class Source:
        label = "source"
        features = Features()

        async def read(self, path, node, offset, length):
            await trio.lowlevel.checkpoint()
            return bytes(length)

    target, log = Slow(), Log()
    spec = JobSpec(Verb.COPY, "a", "b", Options())
    unaudited = replace(context, audited=False)
    run = Run(spec, unaudited, log, Report("copy", "", ""), Meter(), False, None, None)
    ledger = MemoryLedger()
    ledger.add_steps(
        Step(StepKind.COPY, name, size=1, source_path=name, node=Node(name, NodeKind.FILE, 1))
        for name in names
    )
    tuner = tune(run.options, Source.features, target.features, 2)
    transfer = transfer_of(run, Ends(Source(), target), ledger, tuner.tuning)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tune_while_running, run, tuner, transfer)
        await transfer.run(MAKING)
        nursery.cancel_scope.cancel()
    assert run.report.files_copied == len(names)
    assert target.at_most >= 4 * tuner.tuning.parallel
    told = [each.message for each in log.events if each.event == "explained"]
    assert any("files at a time: it became faster" in each for each in told)


def test_events_have_the_fields_of_the_design():
    event = Event(
        "file.copied", 1_767_225_600 * 10**9 + 1_500, "a", "b", 5, 1.5, "blake3:00", "zstd"
    )
    assert json.dumps(event_fields(event), ensure_ascii=False) == (
        '{"timestamp": "2026-01-01T00:00:00.000001Z", "event": "file.copied", "source": "a",'
        ' "destination": "b", "bytes": 5, "duration_ms": 1.5, "checksum": "blake3:00",'
        ' "compression": "zstd"}'
    )
    assert timestamp(0) == "1970-01-01T00:00:00.000000Z"


def test_the_meter_knows_rate_and_what_is_left():
    now = [100.0]
    meter = Meter(lambda: now[0])
    meter.bytes_total, meter.planned = 1_000, True
    now[0], meter.bytes_done = 102.0, 200
    progress = meter.progress()
    assert (progress.bytes_per_s, progress.eta_s, progress.elapsed_s) == (100.0, 8.0, 2.0)
    now[0] = 103.0  # nothing moved in this second
    assert 0 < meter.progress().bytes_per_s < 100


# --- dying at every call -------------------------------------------------------------------------


class Died(BaseException):
    """The process ended here."""


class Mortal:
    """A tree whose process dies at the n-th call that changes something."""

    CHANGING = frozenset(
        {
            "write", "mkdir", "symlink", "hard_link", "special", "set_metadata", "delete",
            "rename", "sync",
        }
    )  # fmt: skip

    def __init__(self, tree, calls):
        self._tree = tree
        self._left = calls
        self.dead = False

    def __getattr__(self, name):
        found = getattr(self._tree, name)
        if name in {"label", "features"}:
            return found

        async def call(*args, **kwargs):
            if self.dead:
                raise Died
            if name in self.CHANGING:
                self._left -= 1
                if self._left == 0:
                    self.dead = True
                    raise Died
            return await found(*args, **kwargs)

        return call


async def all_threads_ended(tree):
    """A process that has died does nothing more; threads that were left behind might."""
    for limiter in (tree._limiter, tree._closing):
        for _ in range(int(limiter.total_tokens)):
            await limiter.acquire_on_behalf_of(object())


async def one_life(jobs, context, source, target, calls):
    """Run the job until it is done (True) or its process dies."""
    held = jobs.claim()
    tree = LocalTree(os.fsencode(target))
    trees = LocalTree(os.fsencode(source)), Mortal(tree, calls)
    run = Run(held.spec, context, Silence(), Report("sync", "", ""), Meter(), False, held, None)
    job = _TreesJob(run, Ends(*trees), End(trees[1].features), Surroundings.look())
    try:
        await job.carry_out()
    except BaseException as error:  # noqa: BLE001  whatever form it takes
        leaves, todo = [], [error]
        while todo:
            each = todo.pop()
            if isinstance(each, BaseExceptionGroup):
                todo += each.exceptions
            else:
                leaves.append(each)
        assert leaves
        assert all(isinstance(each, Died) for each in leaves), leaves
        await all_threads_ended(tree)
        return None
    held.finish(JobState.DONE, run.report.as_json())
    return run.report


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(each, marks=pytest.mark.soak) for each in range(1, 30))]
)
async def test_a_job_survives_dying_at_every_call(tmp_path, seed):
    """Each life dies one call later than the one before; a new history for each death."""
    chance = random.Random(seed)
    source, start = tmp_path / "source", tmp_path / "start"
    source.mkdir()
    make_tree(os.fsencode(source), chance, entries=14)
    start.mkdir()
    context = Context(state=tmp_path, cache=tmp_path / "cache", audited=False)
    step = 1
    for calls in range(1, 200, step):
        target = tmp_path / f"target{calls}"
        target.mkdir()
        machine = Machine()
        path = tmp_path / f"jobs{calls}.db"
        first = machine.process()
        jobs = Jobs.open(path, host=first)
        jobs.submit(JobSpec(Verb.SYNC, str(source), str(target), replace(ARCHIVE, durable=False)))
        report = await one_life(jobs, context, source, target, calls)
        jobs.close()
        if report is not None:
            assert report.failed == 0, report.failures
            break
        first.die()
        machine.pass_s(1)
        half = seen(os.fsencode(target))
        whole = seen(os.fsencode(source))
        for name, fields in half.items():
            if "content" in fields:
                assert fields["content"] == whole[name]["content"]  # whole, or not there
        jobs = Jobs.open(path, host=machine.process())
        report = await one_life(jobs, context, source, target, 0)
        jobs.close()
        assert report is not None
        assert report.failed == 0, report.failures
        assert seen(os.fsencode(target)) == whole
    else:
        pytest.fail("the job needs more calls than that")
    assert calls > 10


# --- killed at random times -------------------------------------------------------------------


def worker(state, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "syncer.worker", "--state", str(state), *more], cwd=ROOT
    )


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(each, marks=pytest.mark.soak) for each in range(2, 30))]
)
def test_a_worker_killed_at_random_times_ends_what_it_began(tmp_path, seed):
    chance = random.Random(seed)
    source, target, state = tmp_path / "source", tmp_path / "target", tmp_path / "state"
    source.mkdir()
    state.mkdir()
    make_tree(os.fsencode(source), chance, entries=150)
    (source / "large").write_bytes(chance.randbytes(24 << 20))
    for _ in range(2):
        jobs = Jobs.open(state / "jobs.db")
        number = jobs.submit(JobSpec(Verb.SYNC, str(source), str(target), ARCHIVE))
        deaths = 0
        while jobs.get(number).state is not JobState.DONE:
            assert jobs.get(number).state in {JobState.QUEUED, JobState.RUNNING}
            process = worker(state)
            began = jobs.get(number).attempt
            if deaths < 3:
                # When it has begun this attempt, some random time later.
                while process.poll() is None and jobs.get(number).attempt == began:
                    time.sleep(0.005)
                time.sleep(chance.uniform(0, 0.3))
                process.kill()
                deaths += 1
            process.wait(timeout=60)
        report = jobs.get(number).report
        jobs.close()
        assert report["failed"] == 0, report["failures"]
        assert seen(os.fsencode(target)) == seen(os.fsencode(source))
        change_tree(os.fsencode(source), chance)


def test_a_worker_does_what_people_want(tmp_path):
    from syncer.job_states import Wanted

    source, target, state = tmp_path / "source", tmp_path / "target", tmp_path / "state"
    source.mkdir()
    state.mkdir()
    (source / "large").write_bytes(random.Random(1).randbytes(8 << 20))
    jobs = Jobs.open(state / "jobs.db")
    spec = JobSpec(Verb.COPY, str(source), str(target), Options(bandwidth="2M"))
    number = jobs.submit(spec)
    process = worker(state)
    deadline = time.monotonic() + 60

    def until(condition):
        while not condition(jobs.get(number)):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    until(lambda job: job.progress.get("bytes_done"))
    jobs.want(number, Wanted.PAUSE)
    until(lambda job: job.state is JobState.PAUSED)
    assert process.wait(timeout=30) == 0  # nothing is left to do
    assert not (target / "large").exists()
    jobs.want(number, Wanted.RUN)
    process = worker(state)
    until(lambda job: job.state is JobState.RUNNING)
    jobs.want(number, Wanted.CANCEL)
    until(lambda job: job.state is JobState.CANCELLED)
    assert process.wait(timeout=30) == 0
    jobs.close()


def test_a_limit_is_changed_while_the_job_runs(tmp_path):
    """At the first rate it would take days; below it, all jobs of the worker have one of their own.

    Both are lifted: the job is done.
    """
    source, target, state = tmp_path / "source", tmp_path / "target", tmp_path / "state"
    source.mkdir()
    state.mkdir()
    (source / "large").write_bytes(random.Random(1).randbytes(8 << 20))
    jobs = Jobs.open(state / "jobs.db")
    number = jobs.submit(JobSpec(Verb.COPY, str(source), str(target), Options(bandwidth="10k")))
    process = worker(state, "--bandwidth", "100M", "--jobs", "1")
    deadline = time.monotonic() + 60
    while jobs.get(number).state is not JobState.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(BadJob, match="no rate"):
        jobs.change(number, bandwidth="fast")
    assert jobs.change(number, bandwidth="50M").spec.options.bandwidth == "50M"
    assert process.wait(timeout=60) == 0
    assert jobs.get(number).state is JobState.DONE
    assert (target / "large").stat().st_size == 8 << 20
    with pytest.raises(NotNow):
        jobs.change(number, bandwidth="1M")
    jobs.close()


async def test_a_limit_of_all_jobs_holds_and_can_be_lifted(autojump_clock):
    above = Limit("1M")
    limit = Limit("", above.bucket)
    assert limit.limited
    began = trio.current_time()
    await limit.take(4 << 20)
    assert 3.5 < trio.current_time() - began < 4.5
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(above.tend)
            nursery.start_soon(limit.take, 1 << 40)
            await trio.sleep(1)
            above.change("off")
    assert not limit.limited
    with pytest.raises(BadRate):
        limit.change("nonsense")
    assert not Limit("nonsense").limited  # guidance refuses the job


async def test_a_limit_follows_its_timetable(autojump_clock, monkeypatch):
    metered = False

    async def asked():
        await trio.lowlevel.checkpoint()
        return metered

    monkeypatch.setattr("syncer.limit.metered", asked)
    limit = Limit("8M, 1k on metered")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit.tend)
        await trio.sleep(1)
        assert limit.bucket.rate == 8 << 20
        metered = True
        await trio.sleep(20)
        assert limit.bucket.rate == 1 << 10
        limit.change("2M, 3k on metered")
        await trio.sleep(0.01)
        assert limit.bucket.rate == 3 << 10
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["cancelled", "disk"])
async def test_a_job_is_given_back_at_once_whatever_ended_it(context, tmp_path, how):
    from syncer.worker import carry_out

    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(bytes(range(256)) * (8 << 12))
    jobs = Jobs.open(context.state / "jobs.db")
    spec = JobSpec(Verb.COPY, str(source), str(tmp_path / "target"), Options(bandwidth="10k"))
    number = jobs.submit(spec)
    held = jobs.claim()
    if how == "disk":
        flush = held.flush

        def full():
            held.flush = flush  # only this once
            raise StorageFull("the disk is full")

        held.flush = full
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_out, held, context)
        if how == "cancelled":
            while not jobs.get(number).progress:  # noqa: ASYNC110  what the database says
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    job = jobs.get(number)
    assert (job.state, job.holder) == (JobState.QUEUED, "")
    assert job.reason == (
        "the disk is full" if how == "disk" else "the process that ran it was stopped"
    )
    jobs.close()


async def test_an_idle_worker_forgets_old_steps(context, folders):
    from syncer.worker import work

    source, target = folders
    machine = Machine()
    jobs = Jobs.open(context.state / "jobs.db", host=machine.process())
    number = jobs.submit(JobSpec(Verb.COPY, str(source), str(target), Options(durable=False)))
    await work(jobs, context)
    assert jobs.events(number)
    machine.pass_s(40 * 86_400)
    await work(jobs, context)
    assert not jobs.events(number)
    assert jobs.get(number).report["files_copied"] == 2
    jobs.close()


def test_a_worker_dies_with_its_parent(tmp_path):
    """The parent is killed; the worker, which waits for jobs, ends."""
    script = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'syncer.worker',"
        f" '--state', {str(tmp_path)!r}, '--stay', '--parent', str(os.getpid())])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + 30
    while not (tmp_path / "jobs.db").exists():  # it works
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_destination_that_goes_away_fails_what_is_left(context, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for number in range(5):
        (source / str(number)).write_text("x")

    class Removing(Log):
        def event(self, event):
            if event.event == "job.planned":
                target.rmdir()

    with trio.fail_after(30):
        report = await sync(context, source, target, Removing())
    assert report.exit_code == 2
    assert not target.exists()
    assert report.failed >= 5
    assert report.files_copied == 0


async def test_a_single_file_goes_into_folders_that_are_not_there(context, folders):
    source, target = folders
    planned = await sync(context, source / "g", f"{target}/", verb=Verb.COPY, dry_run=True)
    assert not target.exists()
    report = await sync(context, source / "g", f"{target}/", verb=Verb.COPY)
    assert (target / "g").read_text() == "more"
    assert planned.directories_made == report.directories_made == 1
    report = await sync(context, source / "g", target / "new" / "er" / "name", verb=Verb.COPY)
    assert report.outcome == "done", report.failures
    assert (target / "new" / "er" / "name").read_text() == "more"


async def test_a_backup_that_records_no_snapshot_has_done_nothing(context, folders):
    from syncer.repository import init_repository

    source, target = folders
    await init_repository(str(target), context)
    place = f"repo:{target}"
    first = await sync(context, source, place, verb=Verb.BACKUP, name="taken")
    assert (first.outcome, first.snapshot) == ("done", "taken")
    second = await sync(context, source, place, verb=Verb.BACKUP, name="taken")
    assert (second.outcome, second.exit_code) == ("failed", 2)
    assert "already" in second.failures[0].error
