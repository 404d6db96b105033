"""Random histories of projections: a remote that changes and fails, and the filesystem over it.

What must hold is kept as facts, by inode numbers, so that renamed directories carry theirs along:

- a file that was not changed here shows the bytes of exactly one version of its remote, the one
  that it had when it was opened, or an error; one that was changed shows what was done to it;
- names made, moved or taken away here stay so, whatever the remote says;
- a name of the remote vanishes only when the remote has not had it at some time lately.

Every choice follows from the seed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import trio

from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from blockstore.options import FetchedOptions
from ghostd.errors import RemoteVersionGone, StaleHandle
from ghostd.evicting import Evictor
from ghostd.filesystem import RENAME_EXCHANGE, AttributeChanges
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.remote_rows import ID_BYTES, NEVER
from syncer.remotes.errors import (
    Busy,
    Garbled,
    Missing,
    RemoteError,
    Unreachable,
    Unsupported,
)
from syncer.remotes.held import Held
from syncer.remotes.memory import MemoryRemote, MemoryServer
from syncer.remotes.remote import Kind, Page, PageSink, Remote, Version
from syncer.remotes.wrapper import Call, T, Verb, Wrapper
from tests.ghostd.scale import STORE
from tests.ghostd.world import ROOT, Clock
from tests.projections.world import ProjectedWorld
from tests.simdisk import SimDisk, SimulatedCrash

TREE, FILE = "memory:///", "memory:///file"
BLOCK: Final = 128 << 10
SMALL: Final = replace(
    STORE,
    cache_bytes_max=256 << 10,
    fetched=FetchedOptions(bytes_max=2 << 20, free_bytes_floor=0, open_packs_max=4),
)
TTL_S: Final = 10.0
NAMES: Final = (b"a", b"b", b"c", b"d")
SIZES: Final = (0, 1, 5_000, BLOCK + 1, 5 * BLOCK + 333, 9 * BLOCK, 12 * BLOCK - 7, 20 * BLOCK)
Check = Callable[[], Awaitable[None]]


class Moody(Wrapper):
    """A remote that fails, waits, hands listings on in pieces, and changes in between."""

    def __init__(self, inner: Remote, rng: random.Random, meddle: Check) -> None:
        super().__init__(inner)
        self._rng = rng
        self._meddle = meddle
        self.trouble = 0.0  # the share of requests that something happens to

    async def _call(self, call: Call[T]) -> T:
        await self._pause()
        if self._rng.random() < self.trouble / 2:
            raise self._rng.choice((Unreachable, Busy, Garbled))("as bad as it gets")
        result = await call.go()
        await self._pause()
        if call.verb is not Verb.LIST and self._rng.random() < self.trouble / 4:
            raise Unreachable("the answer was lost")
        return result

    async def _pause(self) -> None:
        if self._rng.random() < self.trouble / 2:
            await trio.sleep(self._rng.choice((0.1, 1.0, 3.0, 20.0, 45.0)))

    async def list(self, key: bytes, sink: PageSink) -> None:
        async def pieces(page: Page) -> None:
            at = 0
            while at < len(page):
                step = self._rng.randint(1, 4)
                await sink(page[at : at + step])
                at += step
                await self._pause()
                if self._rng.random() < self.trouble / 4:
                    await self._meddle()
                if self._rng.random() < self.trouble / 4:
                    raise self._rng.choice((Unreachable, Garbled))("the listing broke off")

        await super().list(key, pieces)


class Interleaving:
    """`Threads` whose work takes its time now and then, and during which blocks may be evicted."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.share = 0.0
        self.evict: Callable[[], None] = lambda: None

    async def run(self, kind, function, *args):
        """See Threads."""
        await trio.lowlevel.checkpoint()
        await self._pause(kind)
        try:
            return function(*args)
        finally:
            await self._pause(kind)

    async def _pause(self, kind: str) -> None:
        if kind in {"commit", "maintenance"} or self._rng.random() >= self.share:
            return
        if self._rng.random() < 0.5:
            self.evict()
        await trio.sleep(self._rng.choice((0.0, 0.01, 2.0)))


@dataclass(slots=True)
class Handle:
    """An open file."""

    ino: int
    version: tuple[str, Version] | None  # as it was when it was opened; None: made here


class History:
    """The remote, the disk, and what must hold."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.disk = SimDisk(seed)
        self.clock = Clock()
        self.servers = {TREE: MemoryServer(), FILE: MemoryServer()}
        self.user = MemoryRemote(self.servers[TREE])
        self.truth: dict[tuple[str, Version], bytes] = {}
        self.versions = 0
        self.remotes: dict[str, Moody] = {}
        self.threads = Interleaving(self.rng)
        self.world: ProjectedWorld = None  # type: ignore[assignment]
        self.placed: dict[tuple[int, bytes], int | None] = {}  # what was done to names here
        self.contents: dict[int, bytearray] = {}  # of files changed here
        self.shown: dict[int, set[bytes]] = {}  # names of the remote, at the last look
        self.lately: set[bytes] = set()  # keys that were not there at some time since
        self.handles: list[Handle] = []
        self.log: list[str] = []
        self.done = {"reads": 0, "refused": 0, "listings": 0, "local": 0}
        self._write_file_root()

    # --- the remote ----------------------------------------------------------------------------

    def _bytes(self) -> bytes:
        self.versions += 1
        return random.Random(self.seed * 1_000_003 + self.versions).randbytes(
            self.rng.choice(SIZES)
        )

    def _key(self) -> bytes:
        return b"/".join(self.rng.choice(NAMES) for _ in range(self.rng.choice((1, 1, 2, 2, 3))))

    def _write_file_root(self) -> None:
        server = self.servers[FILE]
        data = self._bytes()
        server.root = server.new_node(Kind.FILE, data)
        self.truth[FILE, server.root.entry.version] = data

    async def write(self, key: bytes) -> None:
        """A new version of a file of the remote."""
        data = self._bytes()
        entry = await self.user.write(key, Held(data))
        self.truth[TREE, entry.version] = data

    def _gone(self, key: bytes) -> None:
        self.lately.add(key.removesuffix(b"/"))

    async def _delete(self, key: bytes) -> None:
        entry = await self.user.stat(key)
        if entry.kind is Kind.DIRECTORY:
            below: list[bytes] = []

            async def sink(page: Page) -> None:
                below.extend(each.key for each in page)

            await self.user.list(entry.key, sink)
            for each in below:
                await self._delete(each)
        await self.user.delete(entry.key)
        self._gone(entry.key)

    def _all_gone(self, key: bytes) -> None:
        """Everything at and below a key that is about to move."""
        node = self.user._walk(key.split(b"/"))
        if node is None:
            return
        self._gone(key)
        for name in node.children:
            self._all_gone(key + b"/" + name)

    async def meddle(self) -> None:
        """Somebody changes the remote."""
        kind = self.rng.choice(
            ("write", "write", "write", "delete", "rename", "mkdir", "swap", "symlink")
        )
        key, other = self._key(), self._key()
        self.log.append(f"remote {kind} {key!r} {other!r}")
        try:
            if kind == "write":
                await self.write(key)
            elif kind == "delete":
                await self._delete(key)
            elif kind == "rename":
                entry = await self.user.stat(key)
                self._all_gone(key)
                await self.user.rename(entry.key, other, replace=False)
            elif kind == "mkdir":
                await self.user.mkdir(key + b"/")
            elif kind == "symlink":
                await self.user.symlink(key, other)
            else:
                entry = await self.user.stat(key)
                await self._delete(key)
                if entry.kind is Kind.DIRECTORY:
                    await self.write(key)
                else:
                    await self.write(key + b"/" + self.rng.choice(NAMES))
        except RemoteError:
            pass  # no such file, or a directory where a file was meant

    # --- lives ---------------------------------------------------------------------------------

    def open(self) -> ProjectedWorld:
        """A new life of the filesystem on the same disk."""
        self.handles = []
        self.shown = {}
        self.remotes = {
            url: Moody(MemoryRemote(server, url), self.rng, self.meddle)
            for url, server in self.servers.items()
        }
        self.world = ProjectedWorld(
            self.disk,
            self.remotes,
            clock=self.clock,
            store=SMALL,
            threads=self.threads,
            inodes_max=40,
        )
        projected = self.world.projected
        assert projected is not None
        self.evictor = Evictor(
            self.world.tree,
            self.world.writeback,
            self.world.store,
            self.threads,
            projected.projections.get,
        )
        return self.world

    async def attach(self) -> None:
        """The two projections, in the first life."""
        await self.world.project(TREE, b"/r", mode="cow", ttl_s=TTL_S, block_bytes=BLOCK)
        await self.world.project(FILE, b"/file", mode="ro", ttl_s=TTL_S, block_bytes=BLOCK)
        await self.world.fs.sync()

    def trouble(self, share: float) -> None:
        """From now on something happens to this share of all requests and hand-overs."""
        for remote in self.remotes.values():
            remote.trouble = share
        self.threads.share = share
        self.threads.evict = self._evict_some if share else lambda: None

    def _evict_some(self) -> None:
        """Blocks go while somebody is about to read them: what `orbit-ctl evict` does to a file."""
        rows = self.world.tree.remote.blocks
        stored = self.world.tree.namespace.query("SELECT version, part FROM blocks", ())
        keys = sorted({*stored, *rows.changed()})
        for key in self.rng.sample(keys, self.rng.choice((0, len(keys) // 2, len(keys)))):
            ids = rows.get(key)
            if ids:
                rows.set(key, None)
                blocks = [ChunkId(ids[at : at + ID_BYTES]) for at in range(0, len(ids), ID_BYTES)]
                self.world.store.evict([block for block in blocks if block != NEVER])
        self.world.store.evict_step()

    async def quiet(self) -> None:
        """Nothing is under way any more."""
        projected = self.world.projected
        assert projected is not None
        for _ in range(1_000):
            await trio.testing.wait_all_tasks_blocked()
            busy = projected.listings._flights or projected.fetcher._flights
            if not busy and not projected.remover._directories:
                return
            await trio.sleep(1)
        raise AssertionError("something is under way for ever")

    async def settle(self) -> None:
        """Nothing is under way, everything is durable, and what holds is looked at."""
        self.trouble(0.0)
        await self.quiet()
        await self.world.fs.sync()
        self.look()

    # --- what is here --------------------------------------------------------------------------

    def directories(self) -> dict[int, tuple[bytes, dict[bytes, int]]]:
        """Every directory below /r as it is known here, by inode: path, names."""
        root = self.world.fs.lookup(1, b"r").ino
        found: dict[int, tuple[bytes, dict[bytes, int]]] = {}
        todo = [(root, b"/r")]
        while todo:
            ino, path = todo.pop()
            names = dict(self.world.listing(ino))
            found[ino] = path, names
            todo += [
                (below, path + b"/" + name)
                for name, below in names.items()
                if self.world.tree.inode(below).is_dir
            ]
        return found

    def look(self) -> None:
        """Compare names with the facts."""
        directories = self.directories()
        for (parent, name), ino in self.placed.items():
            if parent not in directories:
                assert ino is None, f"a directory with {name!r}, made here, is gone"
                continue
            path, names = directories[parent]
            assert names.get(name) == ino, f"{path!r}/{name!r}: {names.get(name)}, not {ino}"
        shown = {}
        for ino, (path, names) in directories.items():
            row = self.world.tree.remote.dirs.get(ino)
            if row is None:
                continue
            shown[ino] = {
                row.key + name for name in names if self.placed.get((ino, name), ino) == ino
            }
            lost = self.shown.get(ino, set()) - shown[ino]
            lost -= {row.key + name for parent, name in self.placed if parent == ino}
            wrong = {key for key in lost if not self._excused(key)}
            assert not wrong, f"{path!r}: {wrong} vanished, though the remote has always had them"
        self.shown = shown
        self.lately = {
            row.key + name
            for ino in shown
            if (row := self.world.tree.remote.dirs.get(ino)) is not None
            for name, below in directories[ino][1].items()
            if not self._is_there(row.key + name, self.world.tree.inode(below))
        }

    def _is_there(self, key: bytes, inode: Inode) -> bool:
        """The remote has something of this kind under the key."""
        node = self.user._walk(key.split(b"/"))
        return node is not None and (node.entry.kind is Kind.DIRECTORY) == inode.is_dir

    def _excused(self, key: bytes) -> bool:
        parts = key.split(b"/")
        return any(b"/".join(parts[:n]) in self.lately for n in range(1, len(parts) + 1))

    def _files(self) -> list[tuple[int, bytes, int]]:
        """(directory, name, inode number) of files below /r."""
        tree = self.world.tree
        return [
            (parent, name, ino)
            for parent, (_, names) in self.directories().items()
            for name, ino in names.items()
            if tree.inode(ino).is_file
        ]

    def _version_of(self, inode: Inode) -> tuple[str, Version] | None:
        row = self.world.tree.remote.versions.get(inode.base) if inode.base else None
        if row is None:
            return None
        projection = self.world.projected.projections.get(inode.projection)
        if projection is None:
            assert self.disk.crashed
            raise SimulatedCrash
        return projection.url, row.version

    # --- steps ---------------------------------------------------------------------------------

    async def step(self, *, local: bool = True) -> None:
        """A few things at once."""
        rng = self.rng
        together = rng.choice((1, 2, 3, 6))
        with trio.fail_after(400):
            async with trio.open_nursery() as nursery:
                for _ in range(together):
                    action = rng.choice(
                        (self.meddle, self._list, self._list, self._read, self._read, self._read,
                         self._read, self._read_root, self._open, self._close, self._pass,
                         self._evict, self._evict, self._change_root)
                    )  # fmt: skip
                    nursery.start_soon(action)
        if local and rng.random() < 0.5:
            await self._change()
        if rng.random() < 0.2:
            await self.world.fs.sync()

    async def _pass(self) -> None:
        self.clock.now += self.rng.choice((1, 5, 11, 30)) * 10**9
        await trio.sleep(self.rng.choice((0, 1, 10)))

    async def _change_root(self) -> None:
        await trio.lowlevel.checkpoint()
        self._write_file_root()

    async def _list(self) -> None:
        """`ls` of a directory."""
        ino, (path, _) = self.rng.choice(sorted(self.directories().items()))
        self.log.append(f"list {path!r}")
        try:
            await self.world.projected.listings.fresh(self.world.tree.inode(ino))
            self.done["listings"] += 1
        except OrbitError:
            self.done["refused"] += 1

    async def _open(self) -> None:
        """Look a path up and open it, as a program does."""
        try:
            inode = await self.world.look(b"/r/" + self._key())
        except OrbitError:
            return
        if inode.is_file:
            self._opened(inode)

    def _opened(self, inode: Inode) -> Handle:
        self.world.fs.open(inode.ino)
        version = None if inode.ino in self.contents else self._version_of(inode)
        handle = Handle(inode.ino, version)
        self.handles.append(handle)
        return handle

    async def _close(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.handles:
            handle = self.handles.pop(self.rng.randrange(len(self.handles)))
            self.world.fs.release(handle.ino)

    async def _read(self) -> None:
        """Read a part of an open file."""
        if not self.handles:
            await self._open()
        if self.handles:
            await self._compare(self.rng.choice(self.handles))

    async def _read_root(self) -> None:
        """Open the projection of a single file, read all of it, close it."""
        files = self.world.projected.files
        inode = self.world.fs.lookup(1, b"file")
        try:
            await files.renew_root(inode)
        except OrbitError:
            return
        handle = self._opened(inode)
        for _ in range(self.rng.choice((1, 3))):
            if handle in self.handles:  # others close it, too
                await self._compare(handle)
        if handle in self.handles:
            self.handles.remove(handle)
            self.world.fs.release(handle.ino)

    async def _compare(self, handle: Handle) -> None:
        """What is read is what was there when the file was opened, or an error."""
        fs = self.world.fs
        inode = self.world.tree.inode(handle.ino)
        fs.open(handle.ino)  # others may close it meanwhile
        try:
            size = inode.size
            offset = self.rng.randrange(size + 1)
            length = self.rng.choice((1, 4_096, BLOCK, 4 * BLOCK))
            self.log.append(f"read {handle.ino} {offset} {length}")
            found = bytes(await fs.read(handle.ino, offset, length))
            wanted = self._truth_of(handle)
            assert size == len(wanted), f"inode {handle.ino} has {size} bytes, not {len(wanted)}"
            assert found == wanted[offset : offset + length], (
                f"inode {handle.ino} at {offset}+{length}: {_difference(found, wanted, offset)}"
            )
            self.done["reads"] += 1
        except (RemoteError, RemoteVersionGone):  # and nothing else
            self.done["refused"] += 1
        finally:
            fs.release(handle.ino)

    def _truth_of(self, handle: Handle) -> bytes | bytearray:
        if handle.ino in self.contents:
            return self.contents[handle.ino]
        assert handle.version is not None
        inode = self.world.tree.inode(handle.ino)
        assert self._version_of(inode) == handle.version, "an open file changed its version"
        return self.truth[handle.version]

    async def _evict(self) -> None:
        """`orbit-ctl evict` of a directory, or the hand of the cache."""
        if self.rng.random() < 0.3:
            await trio.lowlevel.checkpoint()
            self.world.store.evict_step()
            return
        with contextlib.suppress(OrbitError):
            await self.evictor.evict([self.rng.choice((b"/r", b"/file", b"/r/a"))])

    # --- changes here ----------------------------------------------------------------------------

    async def _change(self) -> None:
        """Something is done to the tree here."""
        actions = (
            self._make, self._make, self._write, self._write, self._truncate, self._unlink,
            self._rename, self._rename, self._rmdir,
        )  # fmt: skip
        action = self.rng.choice(actions)
        try:
            await action()
        except OrbitError as error:
            self.log.append(f"  {action.__name__}: {error!r}")
        else:
            self.done["local"] += 1

    def _place(self) -> tuple[int, bytes]:
        """Some name in some directory."""
        directories = self.directories()
        ino = self.rng.choice(sorted(directories))
        names = sorted(directories[ino][1])
        if names and self.rng.random() < 0.7:
            return ino, self.rng.choice(names)
        return ino, self.rng.choice((*NAMES, b"new"))

    async def _looked_up(self, parent: int, name: bytes) -> Inode:
        """What the kernel does before it changes a name."""
        tree, listings = self.world.tree, self.world.projected.listings
        await listings.find(tree.inode(parent), name)
        found = tree.find(parent, name)
        if found is not None and (inode := tree.inode(found[1])).is_dir:
            await listings.fresh(inode)
        return tree.inode(parent)

    async def _make(self) -> None:
        parent, name = self._place()
        await self._looked_up(parent, name)
        mode = self.rng.choice((0o100644, 0o100644, 0o040755))
        inode = self.world.fs.create(parent, name, mode, ROOT)
        self.log.append(f"make {parent} {name!r} {mode:o} = {inode.ino}")
        self.placed[parent, name] = inode.ino
        if inode.is_file:
            self.contents[inode.ino] = bytearray()

    def _changing(self) -> tuple[Inode, bytearray] | None:
        files = self._files()
        if not files:
            return None
        parent, name, ino = self.rng.choice(sorted(files))
        inode = self.world.tree.inode(ino)
        content = self.contents.get(ino)
        if content is None:
            content = bytearray(self.truth[self._version_of(inode)])  # type: ignore[index]
        assert inode.size == len(content)
        self._now = parent, name, ino
        return inode, content

    def _changed(self, content: bytearray) -> None:
        parent, name, ino = self._now
        self.contents[ino] = content
        found = self.world.tree.find(parent, name)
        if found is not None and found[1] == ino:
            self.placed[parent, name] = ino

    async def _write(self) -> None:
        chosen = self._changing()
        if chosen is None:
            return
        inode, content = chosen
        offset = self.rng.randrange(len(content) + BLOCK)
        data = self.rng.randbytes(self.rng.choice((1, 100, 5_000, BLOCK + 5)))
        self.log.append(f"write {inode.ino} {offset} {len(data)}")
        self.world.fs.open(inode.ino, writing=True)
        try:
            await self.world.fs.write(inode.ino, offset, data)
        finally:
            self.world.fs.release(inode.ino)
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        self._changed(content)

    async def _truncate(self) -> None:
        await trio.lowlevel.checkpoint()
        chosen = self._changing()
        if chosen is None:
            return
        inode, content = chosen
        size = self.rng.choice((0, len(content) // 2, len(content) + BLOCK))
        self.log.append(f"truncate {inode.ino} {size}")
        self.world.fs.setattr(inode.ino, AttributeChanges(size=size))
        content.extend(bytes(max(0, size - len(content))))
        del content[size:]
        self._changed(content)

    async def _unlink(self) -> None:
        parent, name = self._place()
        await self._looked_up(parent, name)
        self.world.fs.unlink(parent, name)
        self.log.append(f"unlink {parent} {name!r}")
        self.placed[parent, name] = None

    async def _rmdir(self) -> None:
        parent, name = self._place()
        await self._looked_up(parent, name)
        found = self.world.tree.find(parent, name)
        self.world.fs.rmdir(parent, name)
        self.log.append(f"rmdir {parent} {name!r}")
        self.placed[parent, name] = None
        assert found is not None
        self._forget(found[1])

    def _forget(self, ino: int) -> None:
        """The directory is gone, and what was said of its names."""
        gone = [key for key in self.placed if key[0] == ino]
        assert all(self.placed[key] is None for key in gone)
        for key in gone:
            del self.placed[key]

    async def _rename(self) -> None:
        (parent, name), (new_parent, new_name) = self._place(), self._place()
        await self._looked_up(parent, name)
        await self._looked_up(new_parent, new_name)
        tree = self.world.tree
        source, target = tree.find(parent, name), tree.find(new_parent, new_name)
        target_is_dir = target is not None and tree.inode(target[1]).is_dir
        flags = RENAME_EXCHANGE if self.rng.random() < 0.2 else 0
        self.world.fs.rename(parent, name, new_parent, new_name, flags)
        self.log.append(f"rename {parent} {name!r} {new_parent} {new_name!r} {flags}")
        assert source is not None
        if (source[1] if source else 0) == (target[1] if target else 0):
            return
        self.placed[parent, name] = target[1] if flags and target else None
        self.placed[new_parent, new_name] = source[1]
        if target_is_dir and not flags:
            self._forget(target[1])  # type: ignore[index]

    # --- the end ---------------------------------------------------------------------------------

    async def converge(self) -> None:
        """The remote is well again: after a TTL everything is as it should be."""
        await self.settle()
        for _ in range(3):  # a directory in whose place a file is now goes first
            self.clock.now += 10**11
            failed = await self._list_all()
            await self.quiet()
        assert not failed
        self.look()
        for ino, (path, names) in self.directories().items():
            wanted = self._wanted(ino)
            more = {name for name in set(names) - wanted if not self._ours(names[name])}
            assert not more, f"{path!r} ({ino}) shows {more} of {names}, too"
            assert wanted <= set(names), f"{path!r} ({ino}) shows {names}, not {wanted}"
        await self._read_all()

    async def _list_all(self) -> list[OrbitError]:
        """List every directory; errors of those that were to go with one above them."""
        listed: set[int] = set()
        failed: list[OrbitError] = []
        while todo := sorted(self.directories().keys() - listed):
            for ino in todo:
                listed.add(ino)
                try:
                    inode = self.world.tree.inode(ino)
                    await self.world.projected.listings.fresh(inode)
                except StaleHandle:  # it went when the one above was listed
                    continue
                except (Missing, Unsupported) as error:
                    failed.append(error)
        return failed

    def _wanted(self, ino: int) -> set[bytes]:
        """The names that a directory should show."""
        wanted = set()
        row = self.world.tree.remote.dirs.get(ino)
        node = None if row is None else self.user._walk(_parts(row.key))
        if node is not None:
            wanted |= set(node.children)
        for (parent, name), there in self.placed.items():
            if parent == ino:
                (wanted.discard if there is None else wanted.add)(name)
        return wanted

    def _ours(self, ino: int) -> bool:
        """A directory that is gone from the remote, but things made here are, or were, in it."""
        inode = self.world.tree.inode(ino)
        rows = self.world.tree.remote.dirs
        return inode.is_dir and bool(inode.flags & FLAG_LOCAL) and rows.get(ino) is None

    async def _read_all(self) -> None:
        for parent, name, ino in self._files():
            handle = self._opened(self.world.tree.inode(ino))
            try:
                found = await self._whole(ino)
            except OrbitError:
                # It was changed or moved here, and the remote does not have its rest any more.
                if (parent, name) not in self.placed:
                    raise
                continue
            finally:
                self.handles.remove(handle)
                self.world.fs.release(ino)
            assert found == self._truth_of(handle), f"{name!r} differs"

    async def _whole(self, ino: int) -> bytes:
        size = self.world.tree.inode(ino).size
        step = 4 * BLOCK
        return b"".join(
            [bytes(await self.world.fs.read(ino, at, step)) for at in range(0, size, step)]
        )


def _parts(key: bytes) -> list[bytes]:
    return [part for part in key.split(b"/") if part]


def _difference(found: bytes, wanted: Mapping[int, int] | bytes, offset: int) -> str:
    part = wanted[offset : offset + len(found)]  # type: ignore[index]
    for at, (one, other) in enumerate(zip(found, part, strict=False)):
        if one != other:
            zeros = not any(found[at : at + 100])
            return f"differs from byte {offset + at} on{' (zeros)' if zeros else ''}"
    return f"{len(found)} bytes, not {len(part)}"
