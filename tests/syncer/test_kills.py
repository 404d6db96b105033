"""Real `orbit` processes killed at random moments, started again until they are done, compared.

A moment is a number of events that the process has told: it is killed as soon as it has. Between
two lives, under every name at the destination is the old file or the new one, whole.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.syncer.pairs.places import File, Servers

ROOT = Path(__file__).parents[2]
TIME_NS = 1_700_000_000 * 10**9
DEATHS = 2
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 12))]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with Servers(tmp_path_factory.mktemp("kills")) as servers:
        servers.start("s3")
        yield servers


class User:
    """Calls `orbit` in a home of its own."""

    def __init__(self, folder, servers):
        self._folder = folder
        self._environment = {
            **servers.environment,
            "PATH": "/usr/bin:/bin",
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }

    def run(self, *arguments, kill_after=None):
        """Its exit code; None: it was killed when it had told so many events."""
        command = [sys.executable, "-m", "cli.orbit", *map(str, arguments)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment,
            cwd=self._folder, start_new_session=True,
        ) as process:  # fmt: skip
            said = []
            for line in process.stdout:
                said.append(line)
                if kill_after is not None and len(said) >= kill_after:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    break
        if process.returncode == -signal.SIGKILL:
            return None
        self.said = b"".join(said).decode()
        return process.returncode

    def insist(self, chance, *arguments, events, check, last=()):
        """Kill and start again; `check` is called after each death. `last`: more words at last."""
        for _ in range(DEATHS):
            code = self.run(*arguments, kill_after=chance.randrange(1, events))
            check()
            if code is not None:
                break
        assert self.run(*arguments, *last) == 0, self.said


def two_states(chance):
    old = {
        b"d%d/f%02d" % (number % 4, number): File(chance.randbytes(size), TIME_NS)
        for number, size in enumerate(chance.choices([0, 10, 5_000, 200_000], k=40))
    }
    old[b"large"] = File(chance.randbytes(9 << 20), TIME_NS)
    new = {path: file for path, file in old.items() if chance.random() < 0.8}
    for path in sorted(new):
        if chance.random() < 0.5:
            new[path] = File(chance.randbytes(len(new[path].data) + 1), TIME_NS + 10**9)
    new |= {b"new%d/f" % number: File(chance.randbytes(100), TIME_NS) for number in range(5)}
    new[b"large"] = File(old[b"large"].data[:-1] + b"!!", TIME_NS + 10**9)
    return old, new


def is_temporary(path):
    return path.rpartition(b"/")[2].startswith(b".orbit-")


def visible(place):
    return {path: file.data for path, file in place.files().items() if not is_temporary(path)}


def data_of(files):
    return {path: file.data for path, file in files.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        ("sync", "local"),
        ("mirror", "s3"),
        *(pytest.param(*pair, marks=pytest.mark.soak) for pair in (
            ("copy", "local"), ("mirror", "local"), ("copy", "s3"), ("sync", "s3"),
        )),
    ],
)  # fmt: skip
def test_trees(tmp_path, servers, verb, kind, seed):
    chance = random.Random(seed)
    user = User(tmp_path, servers)
    source, later, target = (servers.place(each) for each in ("local", "local", kind))
    old, new = two_states(chance)
    source.fill(old)
    later.fill(new)
    arguments = ["sync", "--mode", "mirror", "--force"] if verb == "mirror" else [verb]

    def whole():
        found = visible(target)
        for path, data in found.items():
            assert data in {each[path].data for each in (old, new) if path in each}, path
        return found

    user.insist(chance, *arguments, source.url, target.url, "-v", "--json", events=45, check=whole)
    assert whole() == data_of(old)

    def whole_and_nothing_lost():
        # Deletions come last: while anything is not there yet, everything else is.
        found = whole()
        if any(found.get(path) != file.data for path, file in new.items()):
            assert old.keys() <= found.keys()

    user.insist(
        chance, *arguments, later.url, target.url, "-v", "--json", events=30,
        check=whole_and_nothing_lost,
    )  # fmt: skip
    expected = data_of(new) if verb == "mirror" else data_of(old) | data_of(new)
    assert whole() == expected
    assert user.run("verify", later.url, target.url) == (0 if verb == "mirror" else 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [pytest.param("local", marks=pytest.mark.soak), "s3"])
def test_backups_and_restoring(tmp_path, servers, kind, seed):
    chance = random.Random(seed)
    user = User(tmp_path, servers)
    source, later, target = (servers.place("local") for _ in range(3))
    repository = servers.place(kind)
    if kind == "local":
        shutil.rmtree(repository.url)
    old, new = two_states(chance)
    source.fill(old)
    later.fill(new)
    assert user.run("init", repository.url) == 0, user.said

    def unlocked():
        assert user.run("unlock", repository.url) == 0, user.said

    for number, place in enumerate((source, later)):
        user.insist(
            chance, "backup", place.url, repository.url, "-v", "--json",
            events=6, check=unlocked, last=("--name", f"s{number}"),
        )  # fmt: skip
    assert user.run("verify", "--repo", repository.url) == 0, user.said

    def whole():
        for path, data in visible(target).items():
            assert data in {each[path].data for each in (old, new) if path in each}, path

    for number, files in enumerate((old, new)):
        user.insist(
            chance, "restore", f"s{number}", target.url, "--repo", repository.url, "-v", "--json",
            events=30, check=whole,
        )  # fmt: skip
        found = visible(target)
        assert all(found[path] == file.data for path, file in files.items())
