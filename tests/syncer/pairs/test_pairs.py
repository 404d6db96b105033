"""Every kind of place to every other, with real servers, through the engine and through the daemon.

Each kind's source stands there in two states, filled past the code under test: as it was, and as it
is some time later. A destination is given the first, then the second, and is read past the code
under test, too.
"""

import itertools
import random
import shutil
import sys

import pytest

from syncer.context import Context
from syncer.engine import run_job
from syncer.events import Silence
from syncer.jobs_spec import spec_fields
from syncer.options import JobSpec, Mode, Options, Verb
from tests.mount.conftest import workplace  # noqa: F401  a fixture
from tests.mount.harness import Daemon, Watch
from tests.mount.harness import run as run_command
from tests.syncer.pairs.places import KINDS, File, Servers

LIMIT_S = 300.0
DAY_NS = 86_400 * 10**9
BEGAN_NS = 1_700_000_000_123_456_700  # SMB counts in hundreds of nanoseconds

# Each kind three times as source and three times as destination; all others in the soak.
USUAL = {
    (kind, KINDS[(at + step) % len(KINDS)]) for at, kind in enumerate(KINDS) for step in (0, 1, 4)
}
PAIRS = [
    pair if pair in USUAL else pytest.param(*pair, marks=pytest.mark.soak)
    for pair in itertools.product(KINDS, KINDS)
]

ODD_NAMES = [b"-rf", b"n" * 255, b"new\nline", b"in\xffvalid"]
MORE_ODD_NAMES = [
    *ODD_NAMES, b"--", "ü".encode() * 127, b"\nfirst", b" space ", b"per%41cent", b"q?#[x]",
    b"tab\there", b"quo'te\"", b"*", b"~", b"a:b", b"...",
]  # fmt: skip


def states(source, *, whole):
    """What the source holds first and later, and what changes; the rest keeps its time."""
    chance = random.Random(1)
    first = {
        b"empty": b"",
        b"one": b"1",
        b"d/e/deep": chance.randbytes(5_000),
        b"d/gone/gone": b"with its folder",
        b"same size": b"before",
        b"large": chance.randbytes((6 << 20) + 1 if whole else 200_001),
    }
    names = [name for name in (MORE_ODD_NAMES if whole else ODD_NAMES) if source.holds(name)]
    first |= {b"odd/" + name + b"/in" if at < 2 else b"odd/" + name: name
              for at, name in enumerate(names)}  # fmt: skip
    changed = {
        b"same size": b"after!",
        b"large": first[b"large"][:150_000] + b"!" * 100,
        b"d/new/er": b"new",
    }
    if whole:
        first |= {b"d/many/%d" % number: b"%d" % number for number in range(40)}
        changed |= {b"empty": b"no more", b"one": b"", b"d/many/3": b"0", b"d/many/77": b"7"}
    before = {path: File(data, BEGAN_NS) for path, data in first.items()}
    after = {path: file for path, file in before.items() if path != b"d/gone/gone"}
    after |= {path: File(data, BEGAN_NS + DAY_NS) for path, data in changed.items()}
    return before, after, set(changed)


@pytest.fixture(scope="module")
def servers(workplace):  # noqa: F811
    """All of them, and a daemon; this process finds them as a user's does, by its environment."""
    folder = workplace / "pairs"
    folder.mkdir()
    daemon = Daemon(workplace / "daemon")
    with (
        Servers(folder, daemon.mount) as servers,
        pytest.MonkeyPatch.context() as patch,
        Watch(LIMIT_S, lambda: [daemon]) as watch,
    ):
        for kind in KINDS:
            servers.start(kind)
        for name, value in servers.environment.items():
            patch.setenv(name, value)
        servers.daemon = daemon.start()
        servers.context = Context(state=folder / "state", cache=folder / "cache")
        servers.context.state.mkdir()
        try:
            yield servers
            servers.context.close()
            daemon.check_clean()
            daemon.stop()
        finally:
            daemon.clear()
        daemon.expect_quiet()
        assert not watch.bitten
    shutil.rmtree(folder)
    shutil.rmtree(daemon.folder)


@pytest.fixture(scope="module")
def sources(servers):
    """A kind's two states: places, what they hold, and what differs. Filled once."""
    made = {}

    def of(kind, *, whole):
        if (kind, whole) not in made:
            places = servers.place(kind), servers.place(kind)
            first, later, changed = states(places[0], whole=whole)
            places[0].fill(first, [b"d/bare", b"bare"])
            places[1].fill(later, [b"d/bare", b"other"])
            made[kind, whole] = places, (first, later), changed
        return made[kind, whole]

    return of


def held(source, target, files):
    """What of the files the destination can hold, with the times that both can keep."""
    step = max(source.mtime_resolution_ns, target.mtime_resolution_ns)
    return {
        path: File(file.data, file.mtime_ns // step * step)
        for path, file in files.items()
        if all(target.holds(name) for name in path.split(b"/"))
    }


def assert_holds(target, expected):
    found = target.files()
    assert found.keys() == expected.keys()
    for path, file in expected.items():
        assert found[path].data == file.data, path
        assert found[path].mtime_ns == file.mtime_ns, path


async def run(servers, verb, source, target, *, dry_run=False, **options):
    spec = JobSpec(verb, source.url, target.url, Options(**options))
    return await run_job(spec, servers.context, Silence(), dry_run=dry_run)


def assert_directories(source, target, *paths):
    kept = source.directories and target.directories
    assert target.empty_directories() == (set(paths) if kept else set())


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_what_a_source_is_the_destination_becomes(servers, sources, one, other):
    (before, after), (first, later), changed = sources(one, whole=False)
    target = servers.place(other)
    begun, ended = held(before, target, first), held(before, target, later)

    report = await run(servers, Verb.COPY, before, target, verify=True)
    assert report.files_copied == len(begun), report.failures
    assert (report.failed > 0) == (first.keys() != begun.keys()), report.failures
    assert_holds(target, begun)
    assert_directories(before, target, b"d/bare", b"bare")

    report = await run(servers, Verb.SYNC, after, target, mode=Mode.MIRROR, force=True)
    assert report.files_copied == len(changed), report.failures
    assert_holds(target, ended)
    assert_directories(before, target, b"d/bare", b"other")


@pytest.mark.soak
@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("one", KINDS)
async def test_every_verb_in_every_direction(servers, sources, one, other):
    (before, after), (first, later), changed = sources(one, whole=True)
    target = servers.place(other)
    begun, ended = held(before, target, first), held(before, target, later)
    lost = first.keys() != begun.keys()

    planned = await run(servers, Verb.COPY, before, target, dry_run=True)
    assert target.files() == {}
    report = await run(servers, Verb.COPY, before, target, verify=True)
    assert report.files_copied == planned.files_copied == len(begun), report.failures
    assert report.outcome == ("partly" if lost else "done"), report.failures
    assert_holds(target, begun)
    again = await run(servers, Verb.COPY, before, target)
    assert (again.files_copied, again.files_equal) == (0, len(begun)), again.failures

    report = await run(servers, Verb.VERIFY, before, target)
    assert report.outcome == ("differs" if lost else "done")
    report = await run(servers, Verb.VERIFY, after, target)
    assert report.differences >= len(changed)

    report = await run(servers, Verb.SYNC, after, target)
    assert (report.files_copied, report.deleted) == (len(changed), 0), report.failures
    assert_holds(target, begun | ended)
    # The first state again, by content: only what differs is copied, with its older time.
    report = await run(servers, Verb.SYNC, before, target, checksum=True)
    back = {path for path in changed & first.keys() if first[path].data != later[path].data}
    assert report.files_copied == len(back), report.failures
    assert_holds(target, ended | begun)

    report = await run(servers, Verb.SYNC, after, target, mode=Mode.MIRROR, delete_max=0)
    assert (report.deleted, report.deletions_withheld > 0) == (0, True)
    report = await run(servers, Verb.SYNC, after, target, mode=Mode.MIRROR, force=True)
    assert report.deleted > 0
    assert_holds(target, ended)
    assert_directories(before, target, b"d/bare", b"other")


def orbit_ctl(servers, *arguments, codes=(0,)):
    command = [sys.executable, "-m", "cli.orbit_ctl", "--socket", servers.daemon.socket]
    return run_command(*command, *arguments, codes=codes)


def in_the_daemon(servers, pairs, verb, **options):
    """Jobs for all these at once; their reports. They go through the worker and the door."""
    numbers = []
    for source, target in pairs:
        fields = spec_fields(JobSpec(verb, source.url, target.url, Options(**options)))
        numbers.append(servers.daemon.client.post("/v1/jobs", {"spec": fields}, 60.0)["number"])
    for number in numbers:
        orbit_ctl(servers, "jobs", "wait", str(number), codes=(0, 1))
    asked = [servers.daemon.client.get(f"/v1/jobs/{number}", 60.0) for number in numbers]
    return [job["report"] for job in asked]


@pytest.mark.parametrize("inwards", [True, False], ids=["into the mount", "out of the mount"])
def test_the_daemon_does_the_same(servers, sources, inwards):
    others = [kind for kind in KINDS if kind != "mount"] + ["mount"] * inwards
    rounds = []
    for kind in others:
        (before, after), (first, later), changed = sources(
            kind if inwards else "mount", whole=False
        )
        target = servers.place("mount" if inwards else kind)
        begun, ended = held(before, target, first), held(before, target, later)
        rounds.append((before, after, target, begun, ended, changed))
    reports = in_the_daemon(
        servers, [(each[0], each[2]) for each in rounds], Verb.COPY, verify=True
    )
    for report, (before, _, target, begun, _, _) in zip(reports, rounds, strict=True):
        assert report["files_copied"] == len(begun), report["failures"]
        assert_holds(target, begun)
        assert_directories(before, target, b"d/bare", b"bare")
    pairs = [(each[1], each[2]) for each in rounds]
    reports = in_the_daemon(servers, pairs, Verb.SYNC, mode=Mode.MIRROR, force=True)
    for report, (before, _, target, _, ended, changed) in zip(reports, rounds, strict=True):
        assert report["files_copied"] == len(changed), report["failures"]
        assert_holds(target, ended)
        assert_directories(before, target, b"d/bare", b"other")


def test_orbit_ctl_copies_into_the_mount_and_out_of_it(servers, sources):
    (before, _), (first, _), _ = sources("s3", whole=False)
    inside, target = servers.place("mount"), servers.place("gs")
    said = orbit_ctl(servers, "copy", before.url, inside.url, "--verify")
    assert "copied" in said
    assert_holds(inside, first)
    orbit_ctl(servers, "sync", "--mode", "mirror", inside.url, target.url)
    assert_holds(target, first)
    orbit_ctl(servers, "verify", inside.url, target.url)
    (before, _), _, _ = sources("local", whole=False)
    orbit_ctl(servers, "verify", before.url, target.url, codes=(3,))
