"""Daemons that are stopped, unmounted or killed while requests wait for a remote that is silent."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import os
import signal
import subprocess
import sys

import pytest

from cli.client import CallFailed
from tests.mount.harness import abort_connection, is_mounted
from tests.projections.mounts import EVENT_LIMIT_S, MIB, content, on, orbit_ctl, until, within
from tests.servers.proxy import Cut, How

# Patience of minutes: what ends sooner was ended.
STUBBORN = """
[read]
deadline_s = 300
[remotes]
listing_deadline_s = 300
stale_wait_s = 300
attempt_timeout_s = 300
"""
STOP_LIMIT_S = 30.0  # "within seconds", on a busy machine
LOOK = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"


def begun(far, name: str) -> int:
    """How many requests of a kind the daemon has taken."""
    operations = far.daemon.client.get("/v1/stats", 10.0)["operations"]
    return operations.get(name, {"count": 0})["count"]


@contextlib.contextmanager
def waiting(far, *commands):
    """Programs that wait for the remote while this lasts; they must have ended soon after."""
    running = []
    try:
        for kind, *command in commands:
            before = begun(far, kind)
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
                )
            )
            until(lambda: begun(far, kind) > before, f"{command} asks for nothing")  # noqa: B023
        yield running
    finally:
        abort_if_stuck(far, running)


def abort_if_stuck(far, running) -> None:
    """Whoever still waits for the mount must not hold up the tests."""
    stuck = []
    for process in running:
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            stuck.append(process.args)
            abort_connection(far.daemon.mount)
            process.kill()
            process.wait(STOP_LIMIT_S)
    assert not stuck, f"these waited on: {stuck}"


def fill(site) -> dict[str, bytes]:
    files = {"known/f": content("f", 3 * MIB), "known/g": b"g", "unknown/f": b"", "third/f": b""}
    site.fill(files)
    return files


def hanging(far):
    """A read, a first listing and a name, each of which waits for the remote.

    In different directories: the kernel asks for one name of a directory at a time.
    """
    return waiting(
        far,
        ("read", "cat", far.far / "known/f"),
        ("opendir", "ls", far.far / "unknown"),
        ("lookup", sys.executable, "-c", LOOK, far.far / "third/name"),
    )


@pytest.mark.parametrize(
    ("site", "how"), [("sftp", "SIGTERM"), ("s3", "orbit-ctl stop")], indirect=["site"]
)
def test_a_daemon_stops_while_requests_hang(site, projector, how):
    files = fill(site)
    far = projector(site, config=STUBBORN)
    assert sorted(os.listdir(far.far)) == ["known", "third", "unknown"]
    assert sorted(os.listdir(far.far / "known")) == ["f", "g"]
    (far.daemon.mount / "local").write_bytes(b"kept")
    with site.black_hole():
        with hanging(far):
            far.call("warm", paths=["/far/known"])
            if how == "SIGTERM":
                os.kill(far.daemon.pid, signal.SIGTERM)
            else:
                within(STOP_LIMIT_S, *orbit_ctl(far, "stop"))
            assert far.daemon.ends(STOP_LIMIT_S), far.daemon.news()
        assert far.daemon.wait() == 0, far.daemon.news()
        assert not is_mounted(far.daemon.mount)
        assert not far.daemon.socket.exists()
    far.start()
    assert (far.daemon.mount / "local").read_bytes() == b"kept"
    assert (far.far / "known/f").read_bytes() == files["known/f"]
    far.daemon.check_clean(data=True)
    far.stop()


@on("s3")
def test_an_unmount_ends_the_daemon_though_the_remote_is_silent(site, projector):
    fill(site)
    far = projector(site, config=STUBBORN)
    assert sorted(os.listdir(far.far)) == ["known", "third", "unknown"]
    with site.black_hole():
        far.call("warm", paths=["/far"])  # something is under way
        assert within(STOP_LIMIT_S, "umount", far.daemon.mount)[0] == 0
        assert far.daemon.ends(STOP_LIMIT_S), far.daemon.news()
        assert far.daemon.wait() == 0, far.daemon.news()


@on("sftp")
def test_a_killed_daemon_ends_though_requests_hang(site, projector):
    fill(site)
    far = projector(site, config=STUBBORN)
    assert sorted(os.listdir(far.far)) == ["known", "third", "unknown"]
    assert sorted(os.listdir(far.far / "known")) == ["f", "g"]
    with site.black_hole(), hanging(far):
        os.kill(far.daemon.pid, signal.SIGKILL)
        assert far.daemon.ends(STOP_LIMIT_S), "the killed daemon lives on and holds its mount"
    far.start()
    far.daemon.check_clean(data=True)
    far.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_ends_while_the_kernel_is_told_of_names(folder, projector, number):
    """The kernel lets it wait for requests in the same directory, which wait for the remote."""
    names = [f"old {n:04}" for n in range(2_000)]
    folder.fill({f"d/{name}": b"" for name in names})
    far = projector(folder, config=STUBBORN)
    assert sorted(os.listdir(far.far / "d")) == names
    folder.fill({f"d/new {n:04}": b"" for n in range(2_000)})
    with cf.ThreadPoolExecutor(1) as pool:
        folder.proxy.change(black_hole=True)
        refresh = pool.submit(far.call, "refresh", 2 * EVENT_LIMIT_S, path="/far/d")
        with waiting(far, ("lookup", sys.executable, "-c", LOOK, far.far / "d/nothing")):
            listed = far.counters()["listed_entries"]
            folder.proxy.change(black_hole=False, cut=Cut(How.STALL, 350_000))
            until(lambda: far.counters()["listed_entries"] > listed, "no page has arrived")
            os.kill(far.daemon.pid, number)
            try:
                assert far.daemon.ends(STOP_LIMIT_S), "the daemon lives on and holds its mount"
            finally:
                abort_connection(far.daemon.mount)
        with contextlib.suppress(CallFailed):
            refresh.result(EVENT_LIMIT_S)
    folder.proxy.heal()
    far.start()
    assert len(os.listdir(far.far / "d")) in (2_000, 4_000)
    far.daemon.check_clean(data=True)
    far.stop()
