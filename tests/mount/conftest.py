"""Fixtures of the mount tests: shared and private daemons, folders in them, and the watch over
all.
"""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.mount.harness import Daemon, Watch, clear_mount

TEST_LIMIT_S = 300.0
SOAK_LIMIT_S = 6 * 3600.0

_daemons: list[Daemon] = []


@pytest.fixture(scope="session")
def workplace():
    """A folder that everybody may enter; afterwards nothing of it is mounted, running or there."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used here")
    base = Path(tempfile.mkdtemp(prefix="orbit-mount-"))
    base.chmod(0o755)
    yield base
    left = _mounts_below(base)
    for mount in reversed(left):
        clear_mount(mount)
    processes = _processes_of(base)
    shutil.rmtree(base)
    assert not left, f"mounts were left behind: {left}"
    assert not processes, f"processes were left behind: {processes}"


def _mounts_below(base: Path) -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split(" ")[4]) for line in lines]
    return [point for point in points if base in point.parents]


def _processes_of(base: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(base) in command and entry.parent.name != str(os.getpid()):
            found.append(command)
    return found


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def shared(workplace):
    """One daemon for the tests of a module; at its end it is checked and stopped."""
    daemon = Daemon(workplace / f"d{next(_numbers)}")
    _daemons.append(daemon)
    try:
        daemon.start()
        yield daemon
        assert daemon.running, f"the daemon is gone:\n{daemon.news()}"
        daemon.check_clean()
        daemon.stop()
        daemon.expect_quiet()
    finally:
        daemon.clear()
        _daemons.remove(daemon)
        shutil.rmtree(daemon.folder)


@pytest.fixture
def mnt(shared, request):
    """An empty folder in the shared mount; the daemon must stay quiet during the test."""
    folder = shared.mount / f"t{next(_numbers)}"
    folder.mkdir()
    yield folder
    shared.expect_quiet()


@pytest.fixture
def new_daemon(workplace):
    """Makes daemons of the test's own (not started yet); they are cleared away afterwards."""
    made = []

    def make(**options) -> Daemon:
        daemon = Daemon(workplace / f"d{next(_numbers)}", **options)
        made.append(daemon)
        _daemons.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.clear()
        _daemons.remove(daemon)
        shutil.rmtree(daemon.folder)


@pytest.fixture
def own(new_daemon):
    """A running daemon of the test's own, which must stay quiet."""
    daemon = new_daemon().start()
    yield daemon
    daemon.expect_quiet("clearing a dead mount")


@pytest.fixture
def machine(workplace):
    """An empty folder of the machine's own filesystem: the reference."""
    folder = workplace / f"m{next(_numbers)}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["mount", "machine"])
def here(request):
    """The same test on the mount and on the machine's own filesystem, which is the reference."""
    return request.getfixturevalue("mnt" if request.param == "mount" else "machine")


@pytest.fixture(autouse=True)
def watch(request):
    """No test outlives its limit."""
    limit_s = SOAK_LIMIT_S if request.node.get_closest_marker("soak") else TEST_LIMIT_S
    with Watch(limit_s, lambda: list(_daemons)) as watch:
        yield
    assert not watch.bitten, f"the test took over {limit_s} s and its daemons were killed"
