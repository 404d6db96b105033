"""What a push is given: local changes of a projection, and the calls that settle them.

`PushDoor` asks the daemon through the door. Paths are from the projection's root, keys from the
remote's. A *token* stands for one state of a file: what is read or settled under it is refused once
the file has been changed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from blockstore.errors import OrbitError
from syncer.door import Door
from syncer.door_protocol import Head, Message, data, text
from syncer.remotes.remote import Entry, Version
from syncer.tree import NodeKind

PAGE: Final = 200


class LocalChanged(OrbitError):
    """A file was changed here while it was pushed."""


class Gone(NamedTuple):
    """What the remote had, as it was seen before it was taken away here."""

    key: bytes  # a directory's ends in /
    version: Version | None  # None: not known
    target: bytes | None = None  # symlinks
    path: bytes | None = None  # where it was shown; None: its directory is gone, too
    needed: bool = False  # something that was moved still shows its bytes


class Change(NamedTuple):
    """One name whose file, directory or symlink was made or changed here."""

    projection: int
    ino: int
    parent: int  # inode of its directory
    name: bytes
    path: bytes
    kind: NodeKind
    size: int = 0  # bytes
    mode: int = 0  # permission bits
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    atime_ns: int = 0
    target: bytes | None = None  # symlinks: where to
    key: bytes | None = None  # what it is based on at the remote
    version: Version | None = None  # likewise; files
    goal: bytes | None = None  # where it is to be at the remote; None: no remote takes such a name
    settled: bool = False  # the directory above is at the remote
    written: bool = False  # its content was written here
    open: bool = False  # somebody has it open
    names: int = 1  # how many it has
    empty: bool = False  # a directory without entries
    replaces: Gone | None = None  # what the remote has in its place, as far as is known here
    blocked: bool = False  # likewise, of the other kind: a directory for a file
    token: int = 0

    @property
    def moved(self) -> bool:
        """The remote has it under another key."""
        return self.key is not None and self.key != self.goal


class Opened(NamedTuple):
    """A projection that is to be pushed."""

    projection: int
    top: int  # inode of the path
    url: str
    options: Mapping[str, str]
    prefix: bytes | None  # key of the path; None: it has none
    mode: str


class Side(Protocol):
    """The local side of a push: the daemon's, through the door."""

    async def open(self, path: bytes) -> Opened:
        """Begin; everything that was changed up to now will be listed. Raises RemoteError."""

    def changes(self, opened: Opened, what: str) -> AsyncGenerator[Change, None]:
        """`directories`, `moved` (of files), or `files` (and all else). Each at least once."""

    def gone(self, opened: Opened, prefix: bytes | None = None) -> AsyncGenerator[Gone, None]:
        """What was taken away, what is in a directory before itself. `prefix`: keys below it."""

    async def begin(self, change: Change) -> Change | None:
        """The change as it is now, with a token; None: it is not there any more."""

    async def read(self, change: Change, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises LocalChanged, RemoteError."""

    async def done(self, change: Change, key: bytes, entry: Entry | None) -> bool:
        """The remote has `change` as `entry` under `key`; whether nothing was changed meanwhile.

        What is noted as gone under that key is settled with it.
        """

    async def made(self, change: Change, *, new: bool) -> None:
        """The remote has a directory at the change's goal. A moved one: its entries follow.

        `new`: there is nothing in it.
        """

    async def renaming(self, opened: Opened, change: Change, *, gone: bool) -> bool:
        """Whether a moved directory may be renamed as a whole; what is in it is noted then.

        `gone`: whether it has been, by a push that was cut off.
        """

    async def renamed(self, change: Change) -> None:
        """The remote has renamed a moved directory, with all that is in it, to its goal."""

    async def forget(self, opened: Opened, key: bytes) -> None:
        """What was taken away here is not at the remote any more."""

    async def own(self, change: Change) -> None:
        """Have all bytes of the file here, based on nothing. Raises RemoteError."""

    async def aside(self, change: Change, name: bytes) -> None:
        """Give it another name, so that the remote's is shown again. Raises Exists."""

    async def theirs(self, opened: Opened, path: bytes, key: bytes | None) -> None:
        """Drop the local change at a path: show what the remote has."""


# --- on the wire --------------------------------------------------------------------------------


def version_to_wire(version: Version | None) -> list[Any] | None:
    """For a head."""
    return None if version is None else [version.size, version.etag, version.mtime_ns]


def version_from_wire(values: Sequence[Any] | None) -> Version | None:
    """The inverse of `version_to_wire`."""
    return None if values is None else Version(*values)


def _text(value: bytes | None) -> str | None:
    return None if value is None else text(value)


def _data(value: str | None) -> bytes | None:
    return None if value is None else data(value)


def gone_to_wire(gone: Gone) -> list[Any]:
    """For a head."""
    path = _text(gone.path)
    version = version_to_wire(gone.version)
    return [text(gone.key), version, _text(gone.target), path, gone.needed]


def gone_from_wire(values: Sequence[Any]) -> Gone:
    """The inverse of `gone_to_wire`."""
    key, version, target, path, needed = values
    return Gone(data(key), version_from_wire(version), _data(target), _data(path), needed)


def change_to_wire(change: Change) -> Head:
    """For a head."""
    return change._asdict() | {
        "name": text(change.name),
        "path": text(change.path),
        "kind": change.kind.value,
        "target": _text(change.target),
        "key": _text(change.key),
        "goal": _text(change.goal),
        "version": version_to_wire(change.version),
        "replaces": None if change.replaces is None else gone_to_wire(change.replaces),
    }


def change_from_wire(head: Mapping[str, Any]) -> Change:
    """The inverse of `change_to_wire`."""
    return Change(**head)._replace(
        name=data(head["name"]),
        path=data(head["path"]),
        kind=NodeKind(head["kind"]),
        target=_data(head["target"]),
        key=_data(head["key"]),
        goal=_data(head["goal"]),
        version=version_from_wire(head["version"]),
        replaces=None if head["replaces"] is None else gone_from_wire(head["replaces"]),
    )


class PushDoor:
    """See Side: each call is a request through the door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def _ask(self, op: str, **values: Any) -> Message:
        return await self._door.ask({"op": f"push_{op}", **values})

    async def _about(self, op: str, change: Change, **values: Any) -> Message:
        return await self._ask(
            op,
            projection=change.projection,
            ino=change.ino,
            parent=change.parent,
            name=text(change.name),
            token=change.token,
            **values,
        )

    async def open(self, path: bytes) -> Opened:
        """See Side."""
        head = (await self._ask("open", path=text(path))).head
        return Opened(**head | {"prefix": _data(head["prefix"])})

    async def changes(self, opened: Opened, what: str) -> AsyncGenerator[Change, None]:
        """See Side."""
        after = 0
        while True:
            head = (
                await self._ask(
                    "changes",
                    projection=opened.projection,
                    top=opened.top,
                    what=what,
                    after=after,
                    limit=PAGE,
                )
            ).head
            for each in head["changes"]:
                yield change_from_wire(each)
            after = head["after"]
            if not after:
                return

    async def gone(self, opened: Opened, prefix: bytes | None = None) -> AsyncGenerator[Gone, None]:
        """See Side."""
        before: str | None = None
        within = opened.prefix if prefix is None else prefix
        while True:
            head = (
                await self._ask(
                    "gone",
                    projection=opened.projection,
                    prefix=_text(within),
                    before=before,
                    limit=PAGE,
                )
            ).head
            for each in head["gone"]:
                yield gone_from_wire(each)
            before = head["before"]
            if before is None:
                return

    async def begin(self, change: Change) -> Change | None:
        """See Side."""
        found = (await self._about("begin", change)).head["change"]
        return None if found is None else change_from_wire(found)

    async def read(self, change: Change, offset: int, length: int) -> bytes:
        """See Side."""
        answer = await self._about("read", change, offset=offset, length=length)
        if answer.head["changed"]:
            raise LocalChanged("it was changed while it was pushed")
        return bytes(answer.body)

    async def done(self, change: Change, key: bytes, entry: Entry | None) -> bool:
        """See Side."""
        version = None if entry is None else version_to_wire(entry.version)
        mtime_ns = None if entry is None else entry.mtime_ns
        answer = await self._about(
            "done", change, key=text(key), version=version, mtime_ns=mtime_ns
        )
        return bool(answer.head["clean"])

    async def made(self, change: Change, *, new: bool) -> None:
        """See Side."""
        assert change.goal is not None
        await self._about("made", change, key=text(change.goal), new=new)

    async def renaming(self, opened: Opened, change: Change, *, gone: bool) -> bool:
        """See Side."""
        answer = await self._about("renaming", change, top=opened.top, gone=gone)
        return bool(answer.head["ready"])

    async def renamed(self, change: Change) -> None:
        """See Side."""
        assert change.key is not None
        assert change.goal is not None
        await self._about("renamed", change, key=text(change.key), goal=text(change.goal))

    async def forget(self, opened: Opened, key: bytes) -> None:
        """See Side."""
        await self._ask("forget", projection=opened.projection, key=text(key))

    async def own(self, change: Change) -> None:
        """See Side."""
        await self._about("own", change)

    async def aside(self, change: Change, name: bytes) -> None:
        """See Side."""
        await self._about("aside", change, new_name=text(name))

    async def theirs(self, opened: Opened, path: bytes, key: bytes | None) -> None:
        """See Side."""
        await self._ask("theirs", projection=opened.projection, path=text(path), key=_text(key))
