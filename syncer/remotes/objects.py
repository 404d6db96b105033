"""One remote over any object store: keys, directories, versions, uploads in parts.

An object store has no directories: `a/` is there as long as keys begin with it. An empty object
whose key ends in `/` (a marker) makes its directory exist and is not shown itself. Keys are
passed on byte for byte, `a//b` too; only those with a component `.` or `..`, which HTTP cannot
carry, are left out of listings, with a warning.

Times are whole seconds and cannot be set. A rename is a copy at the server and a deletion: for a
moment both keys are there, and of two that rename at once both may succeed.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from syncer.remotes.bridge import Bridge
from syncer.remotes.digests import IN_LOOP_BYTES_MAX, md5
from syncer.remotes.errors import (
    Changed,
    Denied,
    Exists,
    Garbled,
    Missing,
    NotEmpty,
    RemoteError,
    Unsupported,
)
from syncer.remotes.object_store import Condition, Listed, ObjectInfo, Store, TooLarge, Upload
from syncer.remotes.remote import (
    ROOT,
    Attributes,
    ByteSource,
    Capabilities,
    Checksum,
    Data,
    Entry,
    Kind,
    PageSink,
    Version,
)

T = TypeVar("T")

PAGE_KEYS = 1000  # the most that S3 and GCS give at once
CHECKSUMS_MAX = 1 << 14  # remembered from listings, about 200 bytes each
ABORT_S = 5.0  # for taking back an upload
CONTENT_TYPE = "content-type"  # the one piece of metadata that is not the user's

_log = logging.getLogger(__name__)


def speakable(key: bytes) -> bool:
    """Whether HTTP can carry the key: clients and servers alike resolve `.` and `..`."""
    return not any(part in {b".", b".."} for part in key.split(b"/"))


def part_size(size: int, part_bytes_min: int, parts_max: int) -> int:
    """Bytes of one part: whole MiB, so that their number stays below the store's limit."""
    needed = math.ceil(size / parts_max)
    return max(part_bytes_min, -(-needed // (1 << 20)) * (1 << 20))


class ObjectRemote:
    """See Remote."""

    def __init__(self, url: str, store: Store, bridge: Bridge, path: bytes) -> None:
        """`path`: the root's key, with a `/` at its end if it must be a directory; empty: all."""
        self._url = url
        self._store = store
        self._bridge = bridge
        self._path = path.removesuffix(b"/")
        # A URL without a slash at its end may name an object: the first request finds out.
        self._is_file: bool | None = None if path and not path.endswith(b"/") else False
        self._md5s: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()

    @property
    def url(self) -> str:
        """See Remote."""
        return self._url

    @property
    def origin(self) -> str:
        """See wrappers.HasOrigin: buckets of one server share it."""
        return self._store.http.endpoint

    @property
    def capabilities(self) -> Capabilities:
        """See Remote."""
        return self._store.capabilities

    def _place(self, key: bytes) -> str:
        return f"{self._url}: {key.decode('utf-8', 'backslashreplace')!r}"

    async def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return await self._bridge.run(call, *args)

    # Keys.

    def _full(self, key: bytes) -> bytes:
        """The store's key. Raises Missing for one that cannot be."""
        full = self._path + b"/" + key if self._path and key else self._path + key
        if not speakable(full):
            raise Missing(f"{self._place(key)} cannot be asked for: it has a component . or ..")
        return full

    def _prefix(self, key: bytes) -> bytes:
        """What the keys in a directory begin with."""
        full = self._full(key)
        return full if full.endswith(b"/") or not full else full + b"/"

    async def _root_is_file(self) -> bool:
        """Whether the URL names an object. While nothing is there, it may become either."""
        if self._is_file is None:
            try:
                info = await self._run(self._store.head, self._path)
            except (Missing, Denied):  # who may list need not be allowed to read
                return False
            if info.size and not info.is_folder:
                self._is_file = True
            else:
                below = await self._run(self._store.list, self._path + b"/", "", 1)
                self._is_file = not (info.is_folder or below.objects or below.prefixes)
        return self._is_file

    def _entry(self, info: ObjectInfo, key: bytes) -> Entry:
        if info.md5 is not None and info.etag:
            self._md5s[key, info.etag] = info.md5
            if len(self._md5s) > CHECKSUMS_MAX:
                self._md5s.popitem(last=False)
        return Entry(
            key,
            Kind.FILE,
            size=info.size,
            mtime_ns=info.mtime_ns or None,
            etag=info.etag,
            checksum=Checksum("md5", info.md5) if info.md5 is not None else None,
            metadata=info.metadata,
        )

    # Finding.

    async def list(self, key: bytes, sink: PageSink) -> None:
        """See Remote. One request a page, which has at most 1,000 files and directories."""
        if await self._root_is_file() or (key and not key.endswith(b"/")):
            entry = await self.stat(key)
            if entry.kind is not Kind.DIRECTORY:
                raise Unsupported(f"{self._place(key)} is no directory")
            key = entry.key
        prefix = self._prefix(key)
        following, found = "", key == ROOT
        while True:
            page = await self._run(self._store.list, prefix, following, PAGE_KEYS)
            if page.objects or page.prefixes:
                found, self._is_file = True, False
            if entries := self._entries(page, key, prefix):
                await sink(entries)
            if not page.following:
                break
            if page.following == following:
                raise Garbled(f"{self._place(key)}: the listing does not get on")
            following = page.following
        if not found:
            raise Missing(f"{self._place(key)}: there is nothing below it")

    def _entries(self, page: Listed, key: bytes, prefix: bytes) -> Sequence[Entry]:
        """What a page shows. Raises Garbled for keys that do not belong there."""
        entries: builtins.list[Entry] = []
        left_out = 0
        for info in page.objects:
            name = self._name(info.key, key, prefix)
            if not speakable(name):
                left_out += 1
            elif name and not info.is_folder:  # no marker of this directory, or of one in it
                entries.append(self._entry(info, key + name))
        for below in page.prefixes:
            name = self._name(below, key, prefix)
            if not speakable(name):
                left_out += 1
            else:
                entries.append(Entry(key + name, Kind.DIRECTORY))
        if left_out:
            _log.warning(
                "%s: %d names . or .. in it are not shown: HTTP cannot carry them; rename them "
                "with the provider's tools",
                self._place(key),
                left_out,
            )
        return entries

    def _name(self, full: bytes, key: bytes, prefix: bytes) -> bytes:
        if not full.startswith(prefix) or b"/" in full[len(prefix) : -1]:
            raise Garbled(f"{self._place(key)}: the listing has keys of elsewhere")
        return full[len(prefix) :]

    async def stat(self, key: bytes) -> Entry:
        """See Remote."""
        if await self._root_is_file():
            if key != ROOT:
                raise Missing(f"{self._place(key)}: {self._url} is a single object")
            return self._entry(await self._run(self._store.head, self._path), ROOT)
        if key and not key.endswith(b"/"):
            full = self._full(key)
            try:
                info = await self._run(self._store.head, full)
            except Missing:
                pass
            else:
                if not info.is_folder:
                    return self._entry(info, key)
        below = await self._run(self._store.list, self._prefix(key), "", 1)
        if below.objects or below.prefixes:
            self._is_file = False
        elif key:
            raise Missing(f"{self._place(key)}: there is no such object")
        return Entry(key if key.endswith(b"/") or not key else key + b"/", Kind.DIRECTORY)

    async def _file(self, key: bytes) -> ObjectInfo:
        """A file's object. Raises Missing, Unsupported for a directory."""
        if key.endswith(b"/") or (key == ROOT and not await self._root_is_file()):
            raise Unsupported(f"{self._place(key)} is no file")
        try:
            return await self._run(self._store.head, self._full(key))
        except Missing:
            if (await self.stat(key)).kind is Kind.DIRECTORY:
                raise Unsupported(f"{self._place(key)} is a directory") from None
            raise

    # Bytes.

    async def read(self, key: bytes, version: Version, offset: int, length: int) -> Data:
        """See Remote. A whole file is verified by its MD5 where that is known."""
        if not length:
            await trio.lowlevel.checkpoint()
            return b""
        if key.endswith(b"/") or (key == ROOT and not await self._root_is_file()):
            raise Unsupported(f"{self._place(key)} is no file")
        whole = not offset and length == version.size
        end = None if whole else offset + length
        try:
            info, data = await self._run(
                self._store.get, self._full(key), version.etag, offset, end, length
            )
        except Missing as error:
            raise Changed(str(error)) from None
        except TooLarge as error:  # than it was
            raise Changed(str(error)) from None
        # An etag says more than a time; without one, the time must do.
        known, found = (
            ((version.size, version.etag), (info.size, info.etag))
            if version.etag
            else ((version.size, version.mtime_ns), (info.size, info.mtime_ns))
        )
        if known != found:
            raise Changed(f"{self._place(key)} is not the version asked for any more")
        if len(data) != length:
            raise Garbled(f"{self._place(key)}: {len(data)} bytes came where {length} were due")
        if whole:
            await self._verify(key, info, data)
        return data

    async def read_whole(self, key: bytes, size_max: int) -> tuple[Entry, bytes]:
        """See Remote."""
        if key.endswith(b"/") or (key == ROOT and not await self._root_is_file()):
            await self.stat(key)
            raise Unsupported(f"{self._place(key)} is no file")
        try:
            info, data = await self._run(self._store.get, self._full(key), "", 0, None, size_max)
        except Missing:
            await self._file(key)  # says so better where it is a directory
            raise
        if len(data) != info.size:
            raise Garbled(f"{self._place(key)}: {len(data)} bytes came where {info.size} were due")
        md5 = await self._verify(key, info, data)
        return self._entry(replace(info, md5=md5), key), bytes(data)

    async def _verify(self, key: bytes, info: ObjectInfo, data: Data) -> bytes | None:
        """The MD5 that the bytes were found to have, where one was known; raises Garbled."""
        due = info.md5 or self._md5s.get((key, info.etag))
        guessed = None if due else self._store.md5_of_etag(info.etag)
        if due is None and guessed is None:
            return None
        found = (
            md5(data)
            if len(data) <= IN_LOOP_BYTES_MAX
            else await trio.to_thread.run_sync(md5, data)
        )
        if found not in {due, guessed}:
            if due is None and not await self._run(self._store.confirms_md5, info):
                return None
            raise Garbled(f"{self._place(key)}: its bytes do not have the MD5 the server says")
        return found

    # Changing.

    async def write(
        self,
        key: bytes,
        source: ByteSource,
        attributes: Attributes | None = None,
        *,
        if_version: Version | None = None,
        replace: bool = True,
    ) -> Entry:
        """See Remote. Of the attributes only metadata is kept.

        Where `if_version` has no etag, its size and time are compared before writing, not with it.
        """
        if not self.capabilities.write:
            raise Unsupported(f"{self._url}: {self.capabilities.write_reason}")
        if key.endswith(b"/") or (key == ROOT and (not self._path or self._is_file is False)):
            raise Unsupported(f"{self._place(key)} is a directory")
        if key and await self._root_is_file():
            raise Unsupported(f"{self._place(key)}: {self._url} is a single object")
        if not speakable(key):
            raise Unsupported(f"{self._place(key)}: no component may be . or ..")
        metadata = (attributes.metadata if attributes else None) or {}
        if if_version is not None and not if_version.etag:
            await self._compare(key, if_version)
        condition = Condition(if_version.etag if if_version else "", absent=not replace)
        try:
            info = await self._send(self._full(key), source, condition, metadata)
        except (Changed, Exists, Missing) as error:
            # 412 for either condition, 404 where If-Match finds nothing.
            if condition.absent and not isinstance(error, Missing):
                raise Exists(f"{self._place(key)} is there already") from None
            if condition.etag:
                raise Changed(f"{self._place(key)} is not the version to be replaced") from None
            raise
        if key:
            self._is_file = False
        if not info.mtime_ns and not (attributes and attributes.brief and info.etag):
            info = await self._with_time(info)
        return self._entry(info, key)

    async def _with_time(self, written: ObjectInfo) -> ObjectInfo:
        """What was written, with its time; where it has been replaced since, without one."""
        with contextlib.suppress(RemoteError):  # it is written, whatever this says
            found = await self._run(self._store.head, written.key)
            if (found.etag, found.size) == (written.etag, written.size):
                return found
        return written

    async def _compare(self, key: bytes, version: Version) -> None:
        try:
            now = (await self.stat(key)).version
        except Missing as error:
            raise Changed(str(error)) from None
        if (now.size, now.mtime_ns) != (version.size, version.mtime_ns):
            raise Changed(f"{self._place(key)} is not the version to be replaced")

    async def _send(
        self, full: bytes, source: ByteSource, condition: Condition, metadata: Mapping[str, bytes]
    ) -> ObjectInfo:
        part = part_size(source.size, self._store.part_bytes_min, self._store.parts_max)
        if source.size <= 2 * part:
            data = await source.read(0, source.size) if source.size else b""
            return await self._run(self._store.put, full, data, condition, metadata)
        upload = await self._run(self._store.begin, full, source.size, condition, metadata)
        try:
            await self._send_parts(upload, source, part)
            return await self._run(upload.finish)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_S):
                try:
                    await self._run(upload.abort)
                except RemoteError as error:
                    _log.warning("%s: an unfinished upload stays behind: %s", self._url, error)
            raise

    async def _send_parts(self, upload: Upload, source: ByteSource, part: int) -> None:
        """As many at a time as the store takes; memory holds no more than those."""
        limiter = trio.Semaphore(self._store.parts_at_once)
        failures: list[Exception] = []

        async def put(index: int, data: bytes) -> None:
            try:
                await self._run(upload.put, index, data)
            except RemoteError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
            finally:
                limiter.release()

        async with trio.open_nursery() as nursery:
            for index, offset in enumerate(range(0, source.size, part)):
                await limiter.acquire()
                try:
                    data = await source.read(offset, min(part, source.size - offset))
                except Exception as error:  # noqa: BLE001 - whatever a source raises, raised below
                    failures.append(error)
                    nursery.cancel_scope.cancel()
                    break
                nursery.start_soon(put, index, data)
        if failures:
            raise failures[0]

    async def rename(self, key: bytes, new_key: bytes, *, replace: bool = True) -> None:
        """See Remote. Files only; a copy at the server, then a deletion."""
        if new_key.endswith(b"/") or key.endswith(b"/"):
            raise Unsupported(f"{self._place(key)}: directories of an object store cannot be moved")
        if not speakable(new_key) or not new_key or await self._root_is_file():
            raise Unsupported(f"{self._place(new_key)} cannot be a key")
        info = await self._file(key)
        if key == new_key:
            return
        if not replace:
            # Not every server heeds the condition of the copy.
            try:
                await self._run(self._store.head, self._full(new_key))
            except Missing:
                pass
            else:
                raise Exists(f"{self._place(new_key)} is there already")
        try:
            await self._run(
                self._store.copy, info, self._full(new_key), Condition(absent=not replace)
            )
        except Changed:
            # 412 is said of the source as of the target.
            now = await self._file(key)
            if replace or now.etag != info.etag:
                raise
            raise Exists(f"{self._place(new_key)} is there already") from None
        if (await self._file(key)).etag != info.etag:
            raise Changed(f"{self._place(key)} changed while it was copied: both keys are there")
        await self._run(self._store.delete, info)

    async def delete(self, key: bytes) -> None:
        """See Remote. A directory that no marker makes exist is gone with its last file."""
        if key and not key.endswith(b"/"):
            await self._run(self._store.delete, await self._file(key))
            return
        if await self._root_is_file():
            await self._run(self._store.delete, await self._run(self._store.head, self._path))
            return
        prefix = self._prefix(key)
        page = await self._run(self._store.list, prefix, "", 2)
        markers = [info for info in page.objects if info.key == prefix]
        if page.prefixes or len(page.objects) > len(markers):
            raise NotEmpty(f"{self._place(key)} has entries")
        if not markers:
            raise Missing(f"{self._place(key)}: there is nothing below it")
        await self._run(self._store.delete, markers[0])

    async def mkdir(self, key: bytes) -> None:
        """See Remote: always Unsupported, a directory is there as soon as it has a file."""
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self._place(key)}: an object store has no directories of its own")

    async def symlink(self, key: bytes, target: bytes) -> None:  # noqa: ARG002 - the protocol's
        """See Remote: always Unsupported."""
        await trio.lowlevel.checkpoint()
        raise Unsupported(f"{self._place(key)}: an object store has no symlinks")

    async def set_attributes(self, key: bytes, attributes: Attributes) -> None:
        """See Remote. Metadata only: all of it is replaced."""
        given = replace(attributes, metadata=None)
        if given != Attributes():
            raise Unsupported(f"{self._place(key)}: an object store keeps no mode, owner or time")
        info = await self._file(key)
        if attributes.metadata is not None:
            await self._run(self._store.set_metadata, info, attributes.metadata)

    async def close(self) -> None:
        """See Remote."""
        await self._run(self._store.close)
