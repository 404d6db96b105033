"""Jobs of the daemon as users have them: orbit-ctl as a program, a real mount, real crashes."""

import json
import os
import random
import shutil
import signal
import threading

import pytest

from tests.mount.harness import clear_mount, is_mounted, run
from tests.mount.jobs import Ctl, make_tree, read_until
from tests.mount.manifest import manifest
from tests.servers.openssh import openssh

MIB = 1 << 20
# So slow that what a test does meets the job at work.
SLOW = ("--bandwidth-limit", "4M")
BACK_AGAIN = "the worker of jobs has failed and is started again", "clearing a dead mount"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are compared: needs root")


@pytest.fixture
def ctl(shared):
    """orbit-ctl against the daemon of this module."""
    return Ctl(shared)


@pytest.fixture
def own_ctl(new_daemon):
    """orbit-ctl against a daemon that the test may kill."""
    return Ctl(new_daemon().start())


@pytest.fixture
def source(machine):
    """A tree outside of the mount."""
    folder = machine / "source"
    folder.mkdir()
    make_tree(folder, seed=1)
    return folder


@pytest.fixture
def sftp(ctl):
    """An SSH server that the daemon's user may log in to."""
    with openssh() as server:
        yield server


# --- verbs ---------------------------------------------------------------------------------------


def test_every_verb_into_the_mount_within_it_and_out_of_it(ctl, source, mnt, machine):
    expected = manifest(source)
    dry = ctl.events("copy", "-a", "--dry-run", source, mnt / "in")
    assert any(event["event"] == "would.file.copied" for event in dry)
    assert not (mnt / "in").exists()
    assert "copied" in ctl("copy", "-a", source, mnt / "in")
    assert manifest(mnt / "in") == expected
    assert "nothing to do" in ctl("sync", "-a", source, mnt / "in")
    ctl("copy", "-a", mnt / "in", mnt / "within")
    assert manifest(mnt / "within") == expected
    ctl("copy", "-a", "--verify", mnt / "within", machine / "out")
    assert manifest(machine / "out") == expected
    ctl("verify", source, mnt / "within")
    (mnt / "within" / "d0" / "f0").write_bytes(b"another")
    (mnt / "within" / "more").write_bytes(b"more")
    ctl("verify", source, mnt / "within", code=3)
    ctl("sync", "-a", "--mode", "mirror", source, mnt / "within")
    assert manifest(mnt / "within") == expected


def test_a_copy_within_the_mount_moves_no_byte(ctl, source, mnt):
    expected = manifest(source)
    ctl("copy", "-a", source, mnt / "in")
    said = ctl("copy", "-a", "--verbose", mnt / "in", mnt / "within")
    assert "by clone" in said
    assert "  0 B moved" in said
    assert manifest(mnt / "within") == expected
    inside = (mnt / "in").relative_to(ctl.daemon.mount)
    ctl("snapshot", "create", ctl.daemon.mount, "--name", "then")
    shutil.rmtree(mnt / "in")
    then = ctl.daemon.mount / ".snapshots" / "then" / inside
    said = ctl("copy", "-a", "--verbose", then, mnt / "back")
    assert "by clone" in said
    assert "  0 B moved" in said
    assert manifest(mnt / "back") == expected
    ctl("verify", mnt / "within", mnt / "back")


def test_backup_restore_and_verify(ctl, source, mnt, machine):
    expected = manifest(source)
    ctl("copy", "-a", source, mnt / "in")
    ctl("backup", source, "--name", "outside", "--tag", "t")
    ctl("backup", mnt / "in", "--name", "inside")
    assert "outside" in ctl("snapshot", "list")
    ctl("verify", "outside")
    ctl("restore", "outside", mnt / "a")
    ctl("restore", "inside", machine / "b")
    ctl("restore", "outside:d0", machine / "c")
    assert manifest(mnt / "a") == manifest(machine / "b") == expected
    assert manifest(machine / "c", links=False) == manifest(source / "d0", links=False)


def test_a_backup_into_a_repository(ctl, source, mnt, machine):
    repository = machine / "repository"
    ctl("backup", source, repository, "--name", "there")
    ctl("restore", f"repo:{repository}#there", mnt / "d")
    assert manifest(mnt / "d") == manifest(source)


def test_to_sftp_and_back(new_daemon, source, sftp, monkeypatch, machine):
    monkeypatch.setenv("HOME", str(sftp.home))
    ctl = Ctl(new_daemon().start())
    there = machine / "there"
    there.mkdir()
    ctl("copy", "-a", source, ctl.daemon.mount / "in")
    ctl("sync", "--times", ctl.daemon.mount / "in", sftp.url(there / "x"))
    ctl("copy", sftp.url(there / "x"), ctl.daemon.mount / "back")
    ctl("verify", source / "d1", ctl.daemon.mount / "back" / "d1", "--no-times")
    for number in range(7):
        for path in (source / f"d{number}").iterdir():
            back = ctl.daemon.mount / "back" / f"d{number}" / path.name
            assert back.read_bytes() == path.read_bytes()
    ctl.daemon.check_clean(data=True)


def test_what_makes_no_sense_is_refused_and_says_why(ctl, source, mnt):
    for code, words, arguments in (
        (2, "there is no such file", ("copy", source / "nowhere", mnt)),
        (2, "is this a URL", ("copy", "s3:/x", mnt)),
        (2, "no such rule", ("copy", source, mnt / "x", "--filter", "bogus")),
        (2, "is no schedule", ("copy", source, mnt / "x", "--schedule", "bogus")),
        (2, "does not exist", ("copy", source, mnt / "x", "--after", "99999")),
        (2, "inside the source", ("copy", mnt, mnt / "x" / "y")),
        (2, "same place", ("sync", mnt, mnt)),
        (2, "no rate", ("copy", source, mnt / "x", "--bandwidth-limit", "zz")),
        (2, "no snapshot", ("restore", "never", mnt / "x")),
        (1, "no job", ("jobs", "show", "99999")),
        (1, "no job", ("jobs", "cancel", "99999")),
        (1, "'scheduled', 'queued'", ("jobs", "list", "--state", "bogus")),
    ):
        assert words in ctl(*arguments, code=code), arguments
    assert os.listdir(mnt) == []


# --- steering ------------------------------------------------------------------------------------


def test_pause_resume_cancel_retry_remove(ctl, source, mnt):
    number = ctl.submit("copy", "-a", source, mnt / "in", *SLOW)
    ctl.until_moved(number)
    ctl("jobs", "pause", number)
    moved = ctl.until(number, lambda job: job["state"] == "paused")["progress"]["bytes_done"]
    ctl("jobs", "remove", number, code=1)
    ctl("jobs", "resume", number)
    ctl.until_moved(number, moved + 1)
    ctl("jobs", "cancel", number)
    ctl.ended(number, "cancelled")
    assert manifest(mnt / "in") != manifest(source)
    ctl("jobs", "retry", number)
    ctl("jobs", "wait", number)
    assert manifest(mnt / "in") == manifest(source)
    assert "job.finished" in ctl("jobs", "log", number)
    ctl("jobs", "remove", number)
    ctl("jobs", "show", number, code=1)


def test_order_by_priority_and_dependency(ctl, source, mnt):
    crawl = ("--bandwidth-limit", "500K")
    blocking = [ctl.submit("copy", source, mnt / f"b{n}", *crawl) for n in range(2)]
    for number in blocking:
        ctl.until_moved(number)
    late = ctl.submit("copy", source / "d0", mnt / "late")
    after = ctl.submit("copy", source / "d1", mnt / "after", "--after", late, "--priority", 9)
    early = ctl.submit("copy", source / "d2", mnt / "early", "--priority", 5)
    for number in blocking:
        ctl("jobs", "cancel", number)
    started = [ctl.ended(number)["started_ns"] for number in (early, late, after)]
    assert started == sorted(started)


def test_a_schedule_runs_again_and_again_until_it_is_removed(ctl, source, mnt):
    printed = ctl("sync", source / "d3", mnt / "in", "--schedule", "every 1s")
    schedule = int(printed.split()[-1])

    def runs():
        return [job for job in ctl.jobs() if job["schedule"] == schedule]

    ctl.until(schedule, lambda _: sum(job["state"] == "done" for job in runs()) >= 2)
    assert manifest(mnt / "in").keys() == manifest(source / "d3").keys()
    ctl("jobs", "remove", schedule)
    ctl("jobs", "show", schedule, code=1)


@pytest.mark.parametrize("answer", ["cancel", pytest.param("detach", marks=pytest.mark.soak)])
def test_control_c_on_a_terminal(ctl, source, mnt, answer):
    process, terminal = ctl.on_a_terminal("copy", "-a", source, mnt / "in", *SLOW)
    try:
        read_until(terminal, b"copying")
        os.write(terminal, b"\x03")
        read_until(terminal, b"etach")
        os.write(terminal, answer[:1].encode() + b"\n")
        number = ctl.jobs()[0]["number"]
        if answer == "detach":
            read_until(terminal, b"goes on")
            assert process.wait(60) == 0
            ctl.ended(number)
            assert manifest(mnt / "in") == manifest(source)
        else:
            ctl.ended(number, "cancelled")
            read_until(terminal, b"cancelled")
            assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_the_audit_trail_has_what_was_done(ctl, source, mnt, machine):
    ctl("copy", source, mnt / "in")
    number = ctl.jobs()[0]["number"]
    report = json.loads(ctl("--json", "audit", "verify"))
    assert report["problem"] is None
    shown = [json.loads(line) for line in ctl("--json", "audit", "show").splitlines()]
    mine = {each["destination"] for each in shown if each["job"] == number}
    assert f"{mnt}/in/d0/f0" in mine
    ctl("audit", "export", "--output", machine / "trail")
    exported = (machine / "trail").read_text().splitlines()
    assert len(exported) >= len(shown)


# --- crashes -------------------------------------------------------------------------------------


def whole_or_old(target, source, old):
    """Every file has the bytes of the new one or of the old one, and none is half."""
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            kept = path.read_bytes()
            new = source / path.relative_to(target)
            assert kept == new.read_bytes() or kept == old.get(str(path.relative_to(target))), path


def begin(ctl, verb, source, machine):
    """Queue a slow job; its number, the source that it reads, and where its result is."""
    mount = ctl.daemon.mount
    if verb == "in":
        return ctl.submit("copy", "-a", source, mount / "t", *SLOW), mount / "t"
    if verb == "out":
        ctl("copy", "-a", source, mount / "s")
        return ctl.submit("copy", "-a", mount / "s", machine / "t", *SLOW), machine / "t"
    if verb == "within":
        ctl("copy", "-a", source, mount / "s")
        return ctl.submit("sync", "-a", mount / "s", mount / "t", *SLOW), mount / "t"
    ctl("backup", source, "--name", "s")
    return ctl.submit("restore", "s", mount / "t", *SLOW), mount / "t"


@pytest.mark.parametrize(
    ("verb", "seed"),
    [("in", 0)]
    + [pytest.param("out", 0, marks=pytest.mark.soak)]
    + [
        pytest.param(verb, seed, marks=pytest.mark.soak)
        for verb in ("in", "out", "within", "restore")
        for seed in range(1, 4)
    ],
)
def test_a_killed_daemon_goes_on_with_the_job(own_ctl, source, machine, verb, seed):
    ctl, rng = own_ctl, random.Random(seed)
    number, target = begin(ctl, verb, source, machine)
    for _ in range(1 if not seed else 3):
        ctl.until(number, lambda job: job["progress"].get("bytes_done", 0) > rng.randrange(4 * MIB))
        if ctl.job(number)["state"] == "done":
            break
        worker = ctl.worker()
        gone = os.pidfd_open(worker) if worker else -1
        ctl.daemon.kill()
        if worker:
            signal_when_ended(gone)
        ctl.daemon.start()
        if target.exists():
            whole_or_old(target, source, {})
    ctl.ended(number)
    assert manifest(target) == manifest(source)
    ctl("audit", "verify")
    ctl.daemon.check_clean(data=True)
    ctl.daemon.expect_quiet(*BACK_AGAIN)


def signal_when_ended(process):
    """Wait for the end of a process that is not our child; it must come."""
    import select

    readable, _, _ = select.select([process], [], [], 20)
    os.close(process)
    assert readable, "the worker outlives its daemon"


def test_a_killed_worker_is_started_again_and_goes_on(own_ctl, source):
    ctl, target = own_ctl, own_ctl.daemon.mount / "t"
    number = ctl.submit("copy", "-a", source, target, *SLOW)
    ctl.until_moved(number)
    worker = ctl.worker()
    os.kill(worker, signal.SIGKILL)
    ctl.until(number, lambda _: ctl.worker() not in (0, worker))
    ctl.ended(number)
    assert manifest(target) == manifest(source)
    ctl.daemon.check_clean(data=True)
    ctl.daemon.expect_quiet(*BACK_AGAIN)


@pytest.mark.parametrize("how", ["stop", pytest.param("umount", marks=pytest.mark.soak)])
def test_a_daemon_that_is_stopped_goes_on_with_the_job(own_ctl, source, how):
    ctl, target = own_ctl, own_ctl.daemon.mount / "t"
    number = ctl.submit("copy", "-a", source, target, *SLOW)
    ctl.until_moved(number, 2 * MIB)
    worker = os.pidfd_open(ctl.worker())
    if how == "stop":
        ctl("stop")
    else:
        run("umount", ctl.daemon.mount)
    assert ctl.daemon.wait() == 0
    signal_when_ended(worker)
    assert not is_mounted(ctl.daemon.mount)
    ctl.daemon.start()
    ctl.ended(number)
    assert manifest(target) == manifest(source)
    ctl.daemon.check_clean(data=True)
    ctl.daemon.expect_quiet()


# --- everything at once --------------------------------------------------------------------------


def test_jobs_beside_snapshots_collections_and_writers(own_ctl, source, machine):
    ctl, mount = own_ctl, own_ctl.daemon.mount
    numbers = [
        ctl.submit("copy", "-a", source, mount / "one", *SLOW),
        ctl.submit("copy", "-a", source, mount / "two", *SLOW),
    ]
    over = threading.Event()
    written = []

    def write():
        rng = random.Random(5)
        while not over.is_set():
            path = mount / f"mine{len(written) % 20}"
            path.write_bytes(data := rng.randbytes(rng.randrange(200_000)))
            written.append((path, data))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in numbers:
            ctl.until_moved(number)
        for name in ("a", "b", "c"):
            ctl("snapshot", "create", "--name", name)
            ctl.daemon.collect()
        for number in numbers:
            ctl.ended(number)
    finally:
        over.set()
        writer.join()
    ctl.daemon.collect()
    assert manifest(mount / "one") == manifest(mount / "two") == manifest(source)
    for path, data in dict(written).items():
        assert path.read_bytes() == data
    ctl.daemon.check_clean(data=True)
    ctl.daemon.expect_quiet()


@pytest.fixture
def small_disk(workplace):
    """An ext4 of 160 MiB in a loop device, for a state folder."""
    folder, image = workplace / "small", workplace / "small.img"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(160 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    run("mount", "-o", "loop", image, folder)
    yield folder
    clear_mount(folder)
    folder.rmdir()
    image.unlink()


def test_a_full_state_disk_fails_what_does_not_fit_and_loses_nothing(
    new_daemon, small_disk, machine
):
    ctl = Ctl(new_daemon(state=small_disk / "state").start())
    mount, source = ctl.daemon.mount, machine / "much"
    source.mkdir()
    rng = random.Random(8)
    for number in range(50):
        (source / f"f{number:02}").write_bytes(rng.randbytes(4 * MIB))
    (mount / "before").write_bytes(b"before")
    said = ctl("copy", source, mount / "t", code=1)
    assert "full" in said or "no space" in said
    arrived = sorted(os.listdir(mount / "t"))
    assert 0 < len(arrived) < 50
    for name in arrived:
        assert (mount / "t" / name).read_bytes() == (source / name).read_bytes()
    assert (mount / "before").read_bytes() == b"before"
    number = ctl.jobs()[0]["number"]
    shutil.rmtree(mount / "t")
    for path in sorted(source.iterdir())[10:]:
        path.unlink()
    ctl.daemon.flush()
    ctl.daemon.collect()
    ctl("copy", source, mount / "u")
    assert len(os.listdir(mount / "u")) == 10
    assert ctl.job(number)["state"] == "partly"
    ctl.daemon.check_clean(data=True)


def test_a_huge_sparse_file_takes_what_its_data_takes(ctl, mnt, machine):
    huge = machine / "huge"
    rng = random.Random(9)
    places = sorted(rng.randrange(1 << 40) // 4096 * 4096 for _ in range(40))
    with huge.open("wb") as file:
        for place in places:
            os.pwrite(file.fileno(), rng.randbytes(4096), place)
        file.truncate(1 << 40)
    ctl("copy", huge, mnt / "huge")
    made = (mnt / "huge").stat()
    assert (made.st_size, made.st_blocks * 512) == (1 << 40, 40 * 4096)
    report = ctl.jobs()[0]["report"]
    assert report["bytes_moved"] < 2 * MIB
    ctl("copy", mnt / "huge", machine / "back")
    assert (machine / "back").stat().st_blocks * 512 < 2 * MIB
    for place in places:
        with huge.open("rb") as one, (machine / "back").open("rb") as other:
            assert os.pread(one.fileno(), 8192, place) == os.pread(other.fileno(), 8192, place)
