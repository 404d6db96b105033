"""Operations applied to the filesystem and the model side by side; random histories of them.

The clock moves by one nanosecond an operation, so that times alone tell every two states apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import trio

from ghostd.errors import FilesystemError, NoSpaceLeft
from ghostd.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, AttributeChanges, Caller
from ghostd.inodes import Inode
from tests.ghostd.model import ROOT_NODE, Image, Model
from tests.ghostd.scale import SEGMENT
from tests.ghostd.world import ROOT, Clock, World

NAMES = [b"a", b"b", b"c", b"d", b"\xff\xfe", b"tmp", b"n" * 255]
XATTRS = [b"user.x", b"user.y", b"trusted.z"]
FILE, FOLDER, FIFO, DEVICE = 0o100000, 0o040000, 0o010000, 0o060000


@dataclass(frozen=True)
class Op:
    """One operation; nodes are the model's numbers."""

    name: str
    args: tuple

    def __repr__(self) -> str:
        shown = [a if not isinstance(a, bytes) else a[:12] + b"~%d" % len(a) for a in self.args]
        return f"{self.name}{tuple(shown)}"


async def seen(world: World) -> Image:
    """What the filesystem shows, in the model's terms. Changes no access time."""
    found: Image = {}
    first: dict[int, bytes] = {}
    todo = [(b"", 1)]
    while todo:
        path, ino = todo.pop()
        inode = world.tree.inode(ino)
        content = b""
        if inode.is_file:
            content = bytes(await world.reader.read(inode, 0, inode.size))
            assert len(content) == inode.size
        found[path] = (
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.rdev,
            inode.size,
            content,
            inode.target,
            tuple(sorted(world.tree.xattrs(inode).items())),
            (inode.atime_ns, inode.mtime_ns, inode.ctime_ns),
            first.setdefault(ino, path),
        )
        if inode.is_dir:
            listed = world.listing(ino)
            assert len({name for name, _ in listed}) == len(listed) == inode.children
            todo += sorted((path + b"/" + name, child) for name, child in listed)
    return found


def differences(found: Image, expected: Image) -> list[str]:
    """What differs, for a message."""
    lines = []
    for path in sorted(found.keys() | expected.keys()):
        one, two = found.get(path), expected.get(path)
        if one == two:
            continue
        if one is None or two is None:
            lines.append(f"{path!r}: only {'expected' if one is None else 'found'}")
            continue
        fields = [
            "mode",
            "uid",
            "gid",
            "nlink",
            "rdev",
            "size",
            "content",
            "target",
            "xattrs",
            "times",
            "first",
        ]
        for field, a, b in zip(fields, one, two, strict=True):
            if a != b:
                shown = _where(a, b) if field == "content" else (a, b)  # type: ignore[arg-type]
                lines.append(f"{path!r}: {field} {shown[0]!r}, expected {shown[1]!r}")
    return lines


def _where(a: bytes, b: bytes) -> tuple[str, str]:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
    return f"{len(a)} bytes, {a[at : at + 8]!r} at {at}", f"{len(b)} bytes, {b[at : at + 8]!r}"


class Driver:
    """Applies each operation to both and compares what they answer."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self.world: World | None = None
        self.inos: dict[int, int] = {ROOT_NODE: 1}
        self.states = [model.clone()]  # after 0, 1, … operations of this life
        self.log: list[Op | str] = []
        self.synced = 0  # the newest state that was promised to survive
        self.copied = -1  # the newest state that a copy in the packs holds at least
        self.comparing = False

    def restart(self) -> None:
        """Another life begins, from the state that the model has."""
        self.world = None
        self.model.restart()
        self.states = [self.model.clone()]
        self.log = []
        self.synced, self.copied = 0, -1
        self.comparing = False

    def attach(self, world: World) -> None:
        """Go on with a filesystem that shows what the model shows."""
        self.world = world
        self.inos = {ROOT_NODE: 1}
        todo = [ROOT_NODE]
        while todo:
            number = todo.pop()
            node = self.model.nodes[number]
            for name, ino in world.listing(self.inos[number]):
                child = node.names[name]
                self.inos[child] = ino
                if self.model.nodes[child].is_dir:
                    todo.append(child)

    async def apply(self, op: Op) -> None:
        """Do it on both. Raises what the disk does to the filesystem; the model is left then."""
        assert self.world is not None
        self.clock.now += 1
        self.model.now = self.clock.now
        self.log.append(op)
        number = len(self.log)
        if op.name == "read":
            await self._read(*op.args)
            return
        answer: object = None
        error: FilesystemError | None = None
        try:
            answer = await self._on_filesystem(op)
        except NoSpaceLeft:
            raise
        except FilesystemError as raised:
            error = raised
        refused: type
        try:
            expected = self._on_model(op)
        except FilesystemError as raised:
            refused = type(raised)
        else:
            refused = type(None)
            if error is None and isinstance(answer, Inode) and op.name == "create":
                assert isinstance(expected, int)
                self.inos[expected] = answer.ino
        assert type(error) is refused, (number, op, error, refused)
        self.states.append(self.model.clone())

    async def _read(self, node: int, offset: int, size: int) -> None:
        # What is read is what was there when the read began: later writers do not wait for it.
        assert self.world is not None
        expected = self.model.read(node, offset, size)
        self.states.append(self.model.clone())
        found = await self.world.fs.read(self.inos[node], offset, size)
        assert bytes(found) == expected, (len(self.log), node, offset, size)

    async def _on_filesystem(self, op: Op) -> object:
        assert self.world is not None
        fs, ino, args = self.world.fs, self.inos, op.args
        match op.name:
            case "create":
                parent, name, mode, caller, rdev, target = args
                return fs.create(ino[parent], name, mode, caller, rdev=rdev, target=target)
            case "link":
                return fs.link(ino[args[0]], ino[args[1]], args[2])
            case "unlink" | "rmdir":
                return getattr(fs, op.name)(ino[args[0]], args[1])
            case "rename":
                parent, name, new_parent, new_name, flags = args
                return fs.rename(ino[parent], name, ino[new_parent], new_name, flags)
            case "write":
                return await fs.write(ino[args[0]], args[1], args[2])
            case "open":
                return fs.open(ino[args[0]], truncate=args[1])
            case "setxattr":
                return fs.setxattr(ino[args[0]], args[1], args[2], Caller(0, 0, 0, 0))
            case "release" | "setattr" | "removexattr":
                return getattr(fs, op.name)(ino[args[0]], *args[1:])
        raise AssertionError(op)

    def _on_model(self, op: Op) -> object:
        model, args = self.model, op.args
        match op.name:
            case "create":
                parent, name, mode, caller, rdev, target = args
                return model.create(parent, name, mode, caller, rdev=rdev, target=target)
            case "open":
                return model.open(args[0], truncate=args[1])
            case _:
                return getattr(model, op.name)(*args)

    async def sync(self) -> None:
        """fsync: what was done before it is promised."""
        assert self.world is not None
        before = len(self.states) - 1
        await self.world.fs.sync()
        self.log.append("sync")
        self.synced = max(self.synced, before)

    async def copy(self) -> None:
        """Put a copy of the namespace into the packs."""
        assert self.world is not None
        before = self.synced
        await self.world.keeper.copy_namespace()
        self.log.append("copy")
        self.copied = before

    async def collect(self) -> None:
        """Collect what is not used any more; that commits and copies first."""
        assert self.world is not None
        before = len(self.states) - 1
        await self.world.keeper.collect(0.1, dry_run=False)
        self.log.append("collect")
        self.synced = self.copied = max(self.synced, before)

    async def compare(self) -> None:
        """Everything that can be seen, open files without a name included."""
        assert self.world is not None
        self.comparing = True
        found, expected = await seen(self.world), self.model.image()
        assert found == expected, "\n".join(differences(found, expected))
        for number in set(self.model.handles):
            inode = self.world.tree.inode(self.inos[number])
            node = self.model.nodes[number]
            assert bytes(await self.world.reader.read(inode, 0, inode.size)) == node.content
            assert inode.nlink == node.nlink
        self.comparing = False


def propose(rng: random.Random, model: Model) -> Op:
    """A random operation that often makes sense on the tree as it is."""
    folders = [n for n, node in model.nodes.items() if node.is_dir and node.nlink]
    others = [n for n, node in model.nodes.items() if not node.is_dir]
    files = [n for n in others if model.nodes[n].target is None and not model.nodes[n].rdev]
    files = [n for n in files if model.nodes[n].mode & 0o170000 == FILE]
    folder = rng.choice(folders)
    name = _name(rng, model, folder)
    kind = rng.random()
    caller = Caller(rng.choice((0, 1000)), rng.choice((0, 100)), 1, rng.choice((0, 0o022, 0o077)))
    if not files or kind < 0.16:
        mode = rng.choice((FILE, FILE, FILE, FILE, FOLDER, FOLDER, FIFO, DEVICE, 0o120000))
        permissions = rng.choice((0o644, 0o755, 0o2775, 0o600))
        target = rng.randbytes(rng.randint(1, 60)) if mode == 0o120000 else None
        rdev = 0x0801 if mode == DEVICE else 0
        return Op("create", (folder, name, mode | permissions, caller, rdev, target))
    file = rng.choice((rng.choice(files), files[-1]))  # one of them is worked on more than others
    if kind < 0.46:
        return Op("write", (file, *_write(rng, model.nodes[file].size)))
    if kind < 0.54:
        size = model.nodes[file].size
        new = rng.choice((0, rng.randint(0, size), size + rng.randint(0, 9_000), size // 2))
        return Op("setattr", (file, AttributeChanges(size=new)))
    if kind < 0.59:
        return Op(rng.choice(("unlink", "unlink", "rmdir")), (folder, name))
    if kind < 0.72:
        new_folder = rng.choice(folders)
        flags = rng.choice((0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        new_name = _name(rng, model, new_folder)
        return Op("rename", (folder, name, new_folder, new_name, flags))
    if kind < 0.76:
        return Op("link", (rng.choice(others), folder, name))
    if kind < 0.79 or (kind < 0.84 and not model.handles):
        return Op("open", (file, rng.random() < 0.3))
    if kind < 0.84 and model.handles:
        return Op("release", (rng.choice(model.handles),))
    if kind < 0.90:
        size = model.nodes[file].size
        return Op("read", (file, rng.randint(0, size), rng.randint(0, size + 100)))
    node = rng.choice(list(model.nodes))
    if kind < 0.93:
        changes = AttributeChanges(
            mode=rng.choice((None, 0o600, 0o4755)),
            uid=rng.choice((None, 5)),
            gid=rng.choice((None, 6)),
            mtime_ns=rng.choice((None, 77)),
        )
        return Op("setattr", (node, changes))
    if kind < 0.98:
        value = rng.randbytes(rng.choice((0, 5, 300, 5_000)))
        return Op("setxattr", (node, rng.choice(XATTRS), value))
    return Op("removexattr", (node, rng.choice(XATTRS)))


def _name(rng: random.Random, model: Model, folder: int) -> bytes:
    there = model.nodes[folder].names
    if there and rng.random() < 0.5:
        return rng.choice(sorted(there))
    return rng.choice(NAMES) if rng.random() < 0.98 else b"n" * 256


def _write(rng: random.Random, size: int) -> tuple[int, bytes]:
    length = rng.choice((1, 40, 700, 3_000, 9_000, 20_000, 40_000))
    length = rng.randint(1, length)
    pattern = rng.random()
    if pattern < 0.5:
        offset = size  # append
    elif pattern < 0.65:
        offset = max(0, size - rng.randint(0, 1_500))  # where appending goes on
        length = min(length, rng.randint(1, 1_500))
    elif pattern < 0.85:
        offset = rng.randint(0, size)
    else:
        offset = rng.randint(0, 5 * SEGMENT)
    content = rng.random()
    if content < 0.5:
        data = rng.randbytes(length)
    elif content < 0.75:
        data = bytes([rng.randint(0, 3)]) * length
    else:
        data = random.Random(rng.randint(0, 2)).randbytes(length)  # known already, perhaps
    return offset, data


class Reenters:
    """`Threads` that let the history go on before and after each blocking call of a commit.

    With `overlap` also commits begin while a copy or a collection is under way. On a simulated disk
    the namespace has one connection and no snapshots: there they must not.
    """

    def __init__(self, seed: int, share: float, *, overlap: bool = False) -> None:
        self._rng = random.Random(seed)
        self._share = share
        self._overlap = overlap
        self._inside = False
        self.driver: Driver | None = None

    async def run(self, kind, function, *args):
        """See Threads. Operations run at once, in the calling task."""
        await trio.lowlevel.checkpoint()
        await self._act(kind)
        try:
            return function(*args)
        finally:
            await self._act(kind)

    async def _act(self, kind: str) -> None:
        driver = self.driver
        if self._inside or driver is None or driver.comparing or kind in {"read", "stream"}:
            return
        self._inside = True
        try:
            while self._rng.random() < self._share:
                await driver.apply(propose(self._rng, driver.model))
            if self._overlap and kind == "maintenance" and self._rng.random() < 0.5:
                await trio.sleep(self._rng.choice((0.5, 1.0, 1.5)))
        finally:
            self._inside = False


async def live(driver: Driver, rng: random.Random, *, operations: int) -> None:
    """A random history on a running filesystem: operations, syncs, pauses, long work."""
    for _ in range(operations):
        turn = rng.random()
        if turn < 0.76:
            await driver.apply(propose(rng, driver.model))
        elif turn < 0.80:
            await burst(driver, rng)
        elif turn < 0.90:
            await driver.sync()
        elif turn < 0.94:
            await trio.sleep(1.5)  # the interval passes
        elif turn < 0.96:
            await driver.compare()
        elif turn < 0.98:
            await driver.copy()
        else:
            await driver.collect()


async def burst(driver: Driver, rng: random.Random) -> None:
    """What editors, logs and copies do to one open file: the rare paths of the write path."""
    model = driver.model
    number = model.next_node
    name = b"burst-%d" % number
    await driver.apply(Op("create", (ROOT_NODE, name, FILE | 0o644, ROOT, 0, None)))
    if number not in model.nodes:
        return
    await driver.apply(Op("open", (number, False)))
    kind = rng.choice(("append", "append", "append", "log", "large", "patch", "comb"))
    for turn in range(rng.randint(3, {"log": 22, "comb": 60}.get(kind, 8))):
        if number not in model.handles:  # a reentering operation has closed it
            return
        size = model.nodes[number].size
        offset = size
        length = {"append": 3_000, "log": 150, "large": 70_000, "patch": 40, "comb": 80}[kind]
        if kind in ("patch", "comb") and not turn:
            length = 9_000
        elif kind == "patch":
            offset = rng.randint(0, size)
        elif kind == "comb":
            offset = 60 * turn
        elif kind == "append" and rng.random() < 0.4:
            offset = max(0, size - rng.randint(0, 900))
            length = rng.randint(1, 900) if rng.random() < 0.8 else length
        if kind == "append" and rng.random() < 0.1:
            await driver.apply(Op("setattr", (number, AttributeChanges(size=offset))))
            continue
        await driver.apply(Op("write", (number, offset, rng.randbytes(rng.randint(1, length)))))
        if rng.random() < 0.6:
            await driver.sync()
    if number in model.handles:
        await driver.apply(Op("release", (number,)))
