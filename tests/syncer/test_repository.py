"""Repositories: in local folders, on a server in memory, and on real servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from blockstore.errors import FormatTooNew, StorageFailed
from blockstore.ids import chunk_id
from syncer import repository_lock
from syncer.context import Context, _Shared
from syncer.ends import open_tree
from syncer.engine import run_job
from syncer.events import Silence
from syncer.location import parse
from syncer.options import JobSpec, Verb, default_options
from syncer.prune import prune
from syncer.remotes.bridge import Bridge
from syncer.remotes.errors import Denied, Unreachable
from syncer.remotes.memory import MemoryRemote
from syncer.remotes.policy import RemotePolicy
from syncer.repository import (
    Access,
    Repository,
    RepositoryInvalid,
    RepositoryLocked,
    init_repository,
    unlock,
)
from syncer.repository_lock import LEASE_S, LockInfo, Process, goes_with, list_locks
from syncer.small_files import LocalFiles, RemoteFiles, SmallFiles
from syncer.snapshot_tree import SnapshotTree
from syncer.tree import ROOT
from tests.remotes.kinds import Server, find_kinds, machinery
from tests.servers.openssh import openssh
from tests.syncer.remote_trees import server_of
from tests.syncer.repositories import (
    SMALL,
    URL,
    Counted,
    Machine,
    blobs,
    holds,
    machine,
    opened,
    put,
    sound,
)
from tests.syncer.saved import save, snapshot


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Machine]:
    context = machine(tmp_path, Counted().server)
    yield context
    context.close()


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "repository") if request.param == "local" else URL


def files_at(location: str, context: Machine) -> SmallFiles:
    if location == URL:
        assert context.server is not None
        return RemoteFiles(MemoryRemote(context.server))
    return LocalFiles(Path(location))


# ---- what is a repository ----


async def test_made_once_and_found_again(location: str, here: Machine) -> None:
    with pytest.raises(RepositoryInvalid, match="orbit init"):
        async with Repository.open(location, here):
            raise AssertionError
    made = await init_repository(location, here, SMALL)
    with pytest.raises(RepositoryInvalid, match="already"):
        await init_repository(location, here)
    async with opened(here, location=location) as repository:
        assert repository.format == made
        await put(repository, blobs(1))
    async with opened(here, Access.READ, location) as repository:
        await holds(repository, blobs(1))
        assert (await repository.catalogue.list()).snapshots == []
    # What it cannot be: somebody's folder.
    assert await list_locks(files_at(location, here)) == []


async def test_other_folders_are_refused_and_left_alone(location: str, here: Machine) -> None:
    await files_at(location, here).write("letters/anna.txt", b"hello")
    for act in (lambda: init_repository(location, here), lambda: _open(location, here)):
        with pytest.raises(RepositoryInvalid, match="letters"):
            await act()
    assert await files_at(location, here).names("") == ["letters"]


async def _open(location: str, context: Context) -> None:
    async with opened(context, location=location):
        raise AssertionError


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"{", RepositoryInvalid, "damaged"),
        (b"[]", RepositoryInvalid, "damaged"),
        (b'{"orbit": "repository", "format": 1, "uuid": "00"}', RepositoryInvalid, "damaged"),
        (b'{"orbit": "repository", "format": 2}', FormatTooNew, "version 2"),
    ],
)
async def test_formats_that_are_not_known(
    location: str, here: Machine, content: bytes, error: type[Exception], says: str
) -> None:
    await files_at(location, here).write("repository.json", content)
    for access in Access:
        with pytest.raises(error, match=says):
            async with opened(here, access, location):
                raise AssertionError


async def test_chunks_are_cut_as_the_repository_says(location: str, here: Machine) -> None:
    other = replace(SMALL, chunker=replace(SMALL.chunker, max_bytes=300_000))
    made = await init_repository(location, here, other)
    async with opened(here, location=location) as repository:
        assert repository.store.blocks.options.chunker == made.chunker == other.chunker


# ---- who uses it ----


@pytest.fixture(autouse=True)
def nobody_comes_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in the way was there before: no second try."""
    monkeypatch.setattr(repository_lock, "_AT_ONCE_S", 0.0)


async def test_who_may_use_it_together(location: str, here: Machine, tmp_path: Path) -> None:
    there = machine(tmp_path / "there", here.server)
    async with opened(here, location=location):
        pass
    for first in Access:
        for second in Access:
            async with opened(here, first, location):
                if goes_with(first, second):
                    async with opened(there, second, location) as repository:
                        locks = await list_locks(files_at(location, there))
                        assert sorted(lock.access for lock in locks) == sorted([first, second])
                        assert repository.access is second
                else:
                    with pytest.raises(RepositoryLocked, match=f"{first} since") as caught:
                        async with opened(there, second, location):
                            raise AssertionError
                    assert caught.value.locks[0].process == Process.own()
        assert await list_locks(files_at(location, here)) == []
    there.close()


async def test_readers_see_what_was_there_when_they_came(location: str, here: Machine) -> None:
    async with opened(here, location=location) as repository:
        await put(repository, blobs(1))
    async with opened(here, Access.READ, location) as reader:
        async with opened(here, location=location) as writer:
            await put(writer, blobs(2))
            await put(writer, blobs(3), sync=False)
            async with opened(here, Access.READ, location) as second:
                await holds(second, [*blobs(1), *blobs(2)])
        await holds(reader, blobs(1))


async def _lock(location: str, context: Machine, **changes: object) -> LockInfo:
    process = Process.own()
    info = LockInfo("x.json", Access.WRITE, process, 1e9, 4e9)
    fields = {key: value for key, value in changes.items() if key != "renewed"}
    info = replace(
        info,
        process=replace(process, **fields),  # type: ignore[arg-type]
        renewed=float(changes.get("renewed", 4e9)),  # type: ignore[arg-type]
    )
    await files_at(location, context).write("locks/x.json", info.encode())
    return info


async def test_locks_of_processes_that_are_gone(location: str, here: Machine) -> None:
    await init_repository(location, here, SMALL)
    own = Process.own()
    for gone in ({"pid": 2**22 + 1}, {"started": own.started + 1}, {"boot": "another"}):
        await _lock(location, here, **gone)
        async with opened(here, location=location):
            assert len(await list_locks(files_at(location, here))) == 1
        assert await list_locks(files_at(location, here)) == []


async def test_locks_of_those_of_whom_nothing_is_known(location: str, here: Machine) -> None:
    await init_repository(location, here, SMALL)
    for away in (
        {"boot": "another", "host": "another"},
        {"boot": "another", "machine": ""},
        {"space": "another", "pid": 2**22 + 1},
    ):
        info = await _lock(location, here, **away)
        with pytest.raises(RepositoryLocked, match="wait for it"):
            await _open(location, here)
        assert await unlock(location, here) == []
        stale = await _lock(location, here, **away, renewed=LEASE_S)
        with pytest.raises(RepositoryLocked, match="orbit unlock"):
            await _open(location, here)
        assert await unlock(location, here) == [stale]
        await _lock(location, here, **away)
        assert await unlock(location, here, force=True) == [info]
        async with opened(here, location=location):
            pass


async def test_a_damaged_lock_is_in_the_way_until_it_is_removed(
    location: str, here: Machine
) -> None:
    await init_repository(location, here, SMALL)
    await files_at(location, here).write("locks/y.json", b"{}")
    with pytest.raises(RepositoryLocked, match="orbit unlock"):
        await _open(location, here)
    assert len(await unlock(location, here)) == 1
    async with opened(here, location=location):
        pass


async def test_a_lock_is_renewed(here: Machine, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(here):
        (before,) = await list_locks(files_at(URL, here))
        await trio.sleep(1000)
        (after,) = await list_locks(files_at(URL, here))
    assert after.made == before.made
    assert after.renewed > before.renewed


async def test_nothing_counts_as_synced_without_the_lock(location: str, here: Machine) -> None:
    async with opened(here, location=location) as repository:
        await put(repository, blobs(1))
        await unlock(location, here, force=True)
        with pytest.raises(RepositoryLocked, match="removed by somebody"):
            await put(repository, blobs(2))


# ---- what it is for ----


def folder_with(path: Path, seed: int) -> Path:
    path.mkdir(parents=True)
    for number, data in enumerate(blobs(seed, 12, 30_000)):
        (path / f"{number}").write_bytes(data)
    return path


async def record(repository: Repository, name: str, folder: Path, time_ns: int = 1) -> None:
    root = await trio.to_thread.run_sync(save, repository.store, folder)
    await repository.catalogue.add(snapshot(name, root, time_ns))


def list_of(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def same_as(repository: Repository, name: str, folder: Path) -> None:
    (found,) = [each for each in (await repository.catalogue.list()).snapshots if each.name == name]
    tree = SnapshotTree(repository.store, found.root)
    for path in list_of(folder):
        node = await tree.stat(os.fsencode(path.name))
        data = await tree.read(os.fsencode(path.name), node, 0, node.size)
        assert data == path.read_bytes()


async def test_a_repository_is_moved(tmp_path: Path, here: Machine) -> None:
    """From a folder to a server and back to another folder, and written on the way."""
    first, second = folder_with(tmp_path / "1", 1), folder_with(tmp_path / "2", 2)
    async with opened(here, location=str(tmp_path / "a")) as repository:
        await record(repository, "one", first)
    (tmp_path / "a").rename(tmp_path / "b")
    async with opened(here, location=str(tmp_path / "b")) as repository:
        await same_as(repository, "one", first)
    files = RemoteFiles(await here.open_remote(URL))
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file():
            await files.write(str(path.relative_to(tmp_path / "b")), path.read_bytes())
    async with opened(here) as repository:
        await same_as(repository, "one", first)
        await record(repository, "two", second)
    for folder in ("packs", "snapshots"):
        for name in await files.names(folder):
            data = await files.read(f"{folder}/{name}")
            assert data is not None
            (tmp_path / "b" / folder / name).write_bytes(data)
    for access in (Access.READ, Access.WRITE):
        async with opened(here, access, str(tmp_path / "b")) as repository:
            await same_as(repository, "one", first)
            await same_as(repository, "two", second)
    async with opened(here, Access.READ) as repository:
        await same_as(repository, "two", second)


async def test_a_repository_that_cannot_be_written_is_read(
    location: str, here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "1", 1)
    async with opened(here, location=location) as repository:
        await record(repository, "one", folder)

    async def denied(*_args: object, **_options: object) -> None:
        await trio.lowlevel.checkpoint()
        raise Denied("read-only")

    monkeypatch.setattr(type(files_at(location, here)), "write", denied)
    async with opened(here, Access.READ, location) as repository:
        await same_as(repository, "one", folder)
    with pytest.raises(Denied):
        await _open(location, here)


async def test_prune_removes_what_nobody_needs(
    location: str, here: Machine, tmp_path: Path
) -> None:
    there = machine(tmp_path / "there", here.server)
    folders = {name: folder_with(tmp_path / name, seed) for seed, name in enumerate("abc")}
    for name, folder in folders.items():
        async with opened(here, location=location) as repository:
            await record(repository, name, folder)
    async with opened(there, Access.READ, location) as repository:
        await same_as(repository, "b", folders["b"])

    def unwanted(snapshots):
        return [each for each in snapshots if each.name == "b"]

    async with opened(here, Access.PRUNE, location) as repository:
        dry = await prune(repository, unwanted, dry_run=True)
        assert [each.name for each in dry.removed] == ["b"]
        assert dry.collection.plan.condemned
        await same_as(repository, "b", folders["b"])
        report = await prune(repository, unwanted)
        assert [each.name for each in report.kept] == ["a", "c"]
        assert report.collection.packs_removed
        assert report.collection.bytes_freed > 200_000
        await sound(repository)
    for context in (here, there):  # whose cache knew the packs that are gone
        async with opened(context, location=location) as repository:
            for name in "ac":
                await same_as(repository, name, folders[name])
            if context is here:
                ids = [chunk_id(path.read_bytes()) for path in list_of(folders["b"])]
                assert not repository.store.contains(ids)
            # What was removed is stored anew, under numbers that no index remembers.
            await record(repository, f"b again {context is here}", folders["b"])
    shutil.rmtree(tmp_path / "there" / "cache", ignore_errors=True)
    for context in (here, there):
        async with opened(context, Access.READ, location) as repository:
            await same_as(repository, "b again True", folders["b"])
            await same_as(repository, "c", folders["c"])
    there.close()


async def test_prune_stops_before_a_damaged_record(
    location: str, here: Machine, tmp_path: Path
) -> None:
    async with opened(here, location=location) as repository:
        await record(repository, "one", folder_with(tmp_path / "1", 1))
    files = files_at(location, here)
    data = await files.read("snapshots/one.snapshot")
    assert data is not None
    await files.write("snapshots/one.snapshot", data[:-1])
    async with opened(here, Access.PRUNE, location) as repository:
        with pytest.raises(RepositoryInvalid, match=r"one\.snapshot is damaged"):
            await prune(repository)
    await files.write("snapshots/one.snapshot", data)
    async with opened(here, Access.READ, location) as repository:
        await same_as(repository, "one", tmp_path / "1")


async def test_a_snapshot_in_a_repository_is_a_location(
    location: str, here: Machine, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "1", 1)
    async with opened(here, location=location) as repository:
        await record(repository, "one", folder)
    if location == URL:
        here = replace(here, repository=URL)
        where = parse("snapshot:latest/3", b"/")
    else:
        where = parse(f"repo:{location}#latest/3", b"/")
    async with open_tree(where, here) as tree:
        node = await tree.stat(ROOT)
        assert await tree.read(ROOT, node, 0, node.size) == (folder / "3").read_bytes()


# ---- real servers ----


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    bridge.start()
    yield bridge
    bridge.stop()


PATIENCE = RemotePolicy(attempts_max=4, backoff_s=0.02, breaker_after_s=600.0)


@pytest.fixture(params=["sftp", "smb", "s3", "azure", "gcs"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, bridge: Bridge
) -> tuple[Server, str, Context]:
    """A server, a URL at which nothing is yet, and a context that reaches it."""
    kind = next(kind for kind in find_kinds() if kind.name == request.param)
    server = server_of(kind)
    url, given = server.address(bridge)
    context = Context(
        state=tmp_path / "state",
        cache=tmp_path / "cache",
        _shared=_Shared(machinery=given, policy=PATIENCE),
    )
    return server, url, context


async def test_on_a_real_server(served: tuple[Server, str, Context], tmp_path: Path) -> None:
    server, url, context = served
    first, second = folder_with(tmp_path / "1", 1), folder_with(tmp_path / "2", 2)
    async with opened(context, location=url) as repository:
        await record(repository, "one", first)
        with server.away(), pytest.raises(StorageFailed) as caught:
            await record(repository, "two", second)
        assert isinstance(caught.value.__cause__, Unreachable)
        await record(repository, "two", second)
        with pytest.raises(RepositoryLocked):
            await _open(url, context)
    shutil.rmtree(tmp_path / "cache")
    async with opened(context, Access.READ, url) as repository:
        await same_as(repository, "one", first)
        await same_as(repository, "two", second)
    async with opened(context, Access.PRUNE, url) as repository:
        report = await prune(repository, lambda snapshots: snapshots[:1])
        assert report.collection.packs_removed
        await same_as(repository, report.kept[0].name, second)


async def test_verbs_on_a_real_server(served: tuple[Server, str, Context], tmp_path: Path) -> None:
    """What `orbit` does with it: back up, again, prune, verify, restore."""
    _, url, context = served
    source = folder_with(tmp_path / "source", 1)
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "ü x").write_bytes(b"")
    (source / "link").symlink_to("deep")

    async def run(verb: Verb, place: str, to: str = "", **options: Any) -> None:
        spec = JobSpec(verb, place, to, replace(default_options(verb), **options))
        report = await run_job(spec, context, Silence())
        assert (report.outcome, report.failures) == ("done", [])

    await run(Verb.BACKUP, str(source), f"repo:{url}", name="one")
    (source / "7").write_bytes(b"changed")
    (source / "8").unlink()
    await run(Verb.BACKUP, str(source), f"repo:{url}", name="two")
    await run(Verb.VERIFY, f"repo:{url}")
    shutil.rmtree(tmp_path / "cache")
    async with Repository.open(url, context, Access.PRUNE) as repository:
        report = await prune(repository, lambda known: [x for x in known if x.name == "one"])
        assert [each.name for each in report.kept] == ["two"]
        await sound(repository)
    await run(Verb.VERIFY, f"repo:{url}#two")
    await run(Verb.RESTORE, f"repo:{url}#latest", str(tmp_path / "back"))
    await run(Verb.VERIFY, str(source), str(tmp_path / "back"), modes=True, times=True)
    await run(Verb.VERIFY, f"repo:{url}#latest/deep", str(tmp_path / "back" / "deep"))


async def test_credentials_that_are_wrong(tmp_path: Path, bridge: Bridge) -> None:
    with openssh() as sshd:
        sshd.key.unlink()
        context = Context(
            cache=tmp_path / "cache",
            _shared=_Shared(machinery=machinery(bridge, sshd.home), policy=PATIENCE),
        )
        with pytest.raises(Denied):
            await _open(sshd.url(tmp_path / "r"), context)
    assert not (tmp_path / "r").exists()


def test_two_processes(tmp_path: Path) -> None:
    """The second one is told who is there."""
    script = """
import sys, trio
from pathlib import Path
from syncer.context import Context
from syncer.repository import Repository
async def main():
    context = Context(cache=Path(sys.argv[2]))
    async with Repository.open(sys.argv[1], context, create=True):
        print("in", flush=True)
        sys.stdin.readline()
    context.close()
trio.run(main)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "r"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"in\n"
        second = subprocess.run(command, capture_output=True, input=b"\n", check=False)
        assert f"process {first.pid}".encode() in second.stderr
        first.kill()
    third = subprocess.run(command, capture_output=True, input=b"\n", check=False)
    assert third.stdout == b"in\n", third.stderr
    assert json.loads((tmp_path / "r" / "repository.json").read_text())["format"] == 1
