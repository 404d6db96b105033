"""Azure Blob Storage: `az://container/prefix`.

Options: `account`, `endpoint`, `emulator` (Azurite at its usual port), `anonymous`. Requests follow
learn.microsoft.com/rest/api/storageservices, version 2021-12-02.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from obstore.store import AzureStore

from syncer.remotes.azure_credentials import AzureSigner, find_account
from syncer.remotes.digests import md5_aside, md5_of_header
from syncer.remotes.errors import Busy, Garbled, Unsupported
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import (
    Answer,
    ObjectHttp,
    Request,
    http_date_ns,
    parse_xml,
    quoted,
    strong_etag,
)
from syncer.remotes.object_options import (
    bucket_and_path,
    object_capabilities,
    split_metadata,
    yes_or_no,
)
from syncer.remotes.object_reads import NO_RETRIES, client_options, get_by_etag
from syncer.remotes.object_store import Condition, Listed, ObjectInfo
from syncer.remotes.objects import ObjectRemote
from syncer.remotes.remote import Data, Remote
from syncer.remotes.url import RemoteUrl, check_options

OPTIONS = ("account", "endpoint", "emulator", "anonymous")
PART_BYTES = 8 << 20
PARTS_MAX = 45_000  # a blob takes 50,000 blocks
PARTS_AT_ONCE = 4
COPY_POLL_S = 0.5

_USER = "x-ms-meta-"
_FOLDER = "hdi_isfolder"  # how Hadoop and Data Lake mark a blob that stands for a directory


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """Open `az://…`; asks no server. Raises BadUrl."""
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, OPTIONS)
    container, path = bucket_and_path(parsed, "container")
    anonymous = yes_or_no(parsed, options, "anonymous", default=False)
    emulator = yes_or_no(parsed, options, "emulator", default=False)
    account = find_account(
        parsed,
        machinery,
        account=options.get("account", ""),
        endpoint=options.get("endpoint", ""),
        emulator=emulator,
    )
    signer = AzureSigner(parsed, machinery, account, emulator=emulator, anonymous=anonymous)
    http = ObjectHttp(account.host, signer, machinery, str(parsed))
    store = _Container(str(parsed), container, http, signer, machinery)
    return ObjectRemote(str(parsed), store, machinery.bridge, path)


class _Container:
    """See Store."""

    part_bytes_min = PART_BYTES
    parts_max = PARTS_MAX
    parts_at_once = PARTS_AT_ONCE

    def __init__(
        self, url: str, container: str, http: ObjectHttp, signer: AzureSigner, machinery: Machinery
    ) -> None:
        self.http = http
        self._url = url
        self._container = container
        self._signer = signer
        self._root = f"{signer.account.path}/{container}"
        self.capabilities = object_capabilities(
            read_only_reason="opened anonymously: give credentials" if signer.anonymous else ""
        )
        # Everything it would take from the process's environment is said here.
        self._reader: AzureStore | None = AzureStore(
            container,
            config={
                "account_name": signer.account.name,
                "endpoint": signer.account.host + signer.account.path,
                "use_emulator": False,
                "use_azure_cli": False,
                "skip_signature": signer.anonymous,
            },
            client_options=client_options(machinery),
            retry_config=NO_RETRIES,
            credential_provider=None if signer.anonymous else signer.provider(),
        )

    def place(self, key: bytes) -> str:
        """A blob, for messages."""
        return f"az://{self._container}/{key.decode('utf-8', 'backslashreplace')}"

    def request(self, method: str, key: bytes = b"", **query: str) -> Request:
        """A request for a blob, or for the container."""
        return Request(method, f"{self._root}/{quoted(key)}" if key else self._root, query)

    # Finding.

    async def list(self, prefix: bytes, following: str, keys_max: int) -> Listed:
        request = self.request("GET", restype="container", comp="list", delimiter="/")
        request.query["include"] = "metadata"
        request.query["maxresults"] = str(keys_max)
        if prefix:
            request.query["prefix"] = prefix.decode("utf-8", "surrogateescape")
        if following:
            request.query["marker"] = following
        answer = await self.http.send(request, self._url)
        return await asyncio.to_thread(self._parse_listing, answer.body)

    def _parse_listing(self, body: bytes) -> Listed:
        root = parse_xml(body, self._url)
        if root.tag != "EnumerationResults":
            raise Garbled(f"{self._url}: the server's answer is no listing: is it Azure's?")
        objects, prefixes = [], []
        for found in root.iterfind("Blobs/*"):
            name = found.find("Name")
            if name is None or not name.text:
                raise Garbled(f"{self._url}: the listing has an entry without a name")
            key = name.text.encode()
            if name.get("Encoded") == "true":
                key = unquote_to_bytes(name.text)
            if found.tag == "BlobPrefix":
                prefixes.append(key)
                continue
            size = found.findtext("Properties/Content-Length") or ""
            if not size.isdecimal():
                raise Garbled(f"{self._url}: the listing has an entry without a size")
            metadata = {
                each.tag.lower(): (each.text or "").encode()
                for each in found.iterfind("Metadata/*")
            }
            if kind := found.findtext("Properties/Content-Type"):
                metadata["content-type"] = kind.encode()
            objects.append(
                ObjectInfo(
                    key,
                    int(size),
                    strong_etag(found.findtext("Properties/Etag") or ""),
                    http_date_ns(found.findtext("Properties/Last-Modified") or ""),
                    md5_of_header(found.findtext("Properties/Content-MD5") or ""),
                    metadata,
                    is_folder=metadata.get(_FOLDER) == b"true",
                )
            )
        return Listed(objects, prefixes, root.findtext("NextMarker") or "")

    async def head(self, key: bytes) -> ObjectInfo:
        return self.info_of(key, await self.http.send(self.request("HEAD", key), self.place(key)))

    def info_of(self, key: bytes, answer: Answer) -> ObjectInfo:
        headers = answer.headers
        length = headers.get("content-range", "").rpartition("/")[2] or headers.get(
            "content-length", ""
        )
        if not length.isdecimal():
            raise Garbled(f"{self.place(key)}: the answer tells no size")
        metadata = {
            name.removeprefix(_USER): value.encode("utf-8", "surrogateescape")
            for name, value in headers.items()
            if name.startswith(_USER) or name == "content-type"
        }
        return ObjectInfo(
            key,
            int(length),
            strong_etag(headers.get("etag", "")),
            http_date_ns(headers.get("last-modified", "")),
            # Of a range, Content-MD5 is the range's.
            None if "content-range" in headers else md5_of_header(headers.get("content-md5", "")),
            metadata,
            is_folder=metadata.get(_FOLDER) == b"true",
        )

    def md5_of_etag(self, etag: str) -> bytes | None:  # noqa: ARG002 - no etag is one here
        return None

    async def confirms_md5(self, info: ObjectInfo) -> bool:  # noqa: ARG002 - likewise
        return True

    # Bytes.

    async def get(
        self, key: bytes, etag: str, start: int, end: int | None, size_max: int
    ) -> tuple[ObjectInfo, Data]:
        if not self._signer.anonymous:
            self._signer.secret()  # so that it is our error which says what is missing
        return await get_by_etag(self, self._reader, key, etag, start, end, size_max)

    # Changing.

    async def put(
        self, key: bytes, data: bytes, condition: Condition, metadata: Mapping[str, bytes]
    ) -> ObjectInfo:
        request = self.writing(key, condition, metadata)
        request.headers["x-ms-blob-type"] = "BlockBlob"
        request.headers["content-type"] = request.headers["x-ms-blob-content-type"]
        digest = await md5_aside(data)
        request.headers["content-md5"] = base64.b64encode(digest).decode()  # the server checks it
        request.body = data
        answer = await self.http.send(request, self.place(key), fine=(201,))
        return self.written(key, len(data), answer, metadata, digest)

    def writing(
        self, key: bytes, condition: Condition, metadata: Mapping[str, bytes], **query: str
    ) -> Request:
        """A request that makes a blob."""
        kind, user = split_metadata(metadata, self.place(key))
        if odd := [name for name in user if not name.isidentifier()]:
            raise Unsupported(
                f"{self.place(key)}: metadata {odd[0]!r}: Azure takes letters, digits and _ only"
            )
        request = self.request("PUT", key, **query)
        request.headers["x-ms-blob-content-type"] = kind
        request.headers |= {_USER + name: value for name, value in user.items()}
        _require(request, condition)
        return request

    def written(
        self,
        key: bytes,
        size: int,
        answer: Answer,
        metadata: Mapping[str, bytes],
        digest: bytes | None,
    ) -> ObjectInfo:
        """The blob that a request has made."""
        kept = {"content-type": b"application/octet-stream"}
        kept |= {name.lower(): value for name, value in metadata.items()}
        return ObjectInfo(
            key,
            size,
            strong_etag(answer.headers.get("etag", "")),
            http_date_ns(answer.headers.get("last-modified", "")),
            digest,
            kept,
        )

    async def begin(
        self, key: bytes, size: int, condition: Condition, metadata: Mapping[str, bytes]
    ) -> _Blocks:
        return _Blocks(self, key, size, condition, metadata)

    async def copy(self, source: ObjectInfo, key: bytes, condition: Condition) -> None:
        request = self.request("PUT", key)
        _require(request, condition)
        request.headers["x-ms-copy-source"] = self._signer.copy_source(
            f"{self._root}/{quoted(source.key)}"
        )
        if source.etag:
            request.headers["x-ms-source-if-match"] = source.etag
        answer = await self.http.send(request, self.place(key), fine=(202,), work_bytes=source.size)
        # At once within an account, as a rule.
        while (state := answer.headers.get("x-ms-copy-status", "success")) == "pending":
            await asyncio.sleep(COPY_POLL_S)
            answer = await self.http.send(self.request("HEAD", key), self.place(key))
        if state != "success":
            raise Busy(f"{self.place(key)}: the server gave the copy up ({state})")

    async def delete(self, info: ObjectInfo) -> None:
        request = self.request("DELETE", info.key)
        if info.etag:
            request.headers["if-match"] = info.etag
        await self.http.send(request, self.place(info.key), fine=(202,))

    async def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, bytes]) -> None:
        request = self.writing(info.key, Condition(info.etag), metadata, comp="metadata")
        kind = request.headers.pop("x-ms-blob-content-type")
        answer = await self.http.send(request, self.place(info.key))
        named = {name.lower() for name in metadata}
        if "content-type" in named and kind.encode() != info.metadata.get("content-type"):
            # What is not said again is taken away.
            request = self.request("PUT", info.key, comp="properties")
            request.headers["x-ms-blob-content-type"] = kind
            if info.md5 is not None:
                request.headers["x-ms-blob-content-md5"] = base64.b64encode(info.md5).decode()
            request.headers["if-match"] = strong_etag(answer.headers.get("etag", ""))
            await self.http.send(request, self.place(info.key))

    async def close(self) -> None:
        self._reader = None  # its connections end with it
        await self.http.close()


def _require(request: Request, condition: Condition) -> None:
    if condition.absent:
        request.headers["if-none-match"] = "*"
    elif condition.etag:
        request.headers["if-match"] = condition.etag


class _Blocks:
    """Blocks that become a blob together. See Upload.

    What is given up needs no taking back: the server drops unused blocks within a week, and nobody
    sees them.
    """

    def __init__(
        self,
        container: _Container,
        key: bytes,
        size: int,
        condition: Condition,
        metadata: Mapping[str, bytes],
    ) -> None:
        self._container = container
        self._key = key
        self._size = size
        self._condition = condition
        self._metadata = metadata
        self._blocks: dict[int, str] = {}
        # All names of a blob's blocks must be of one length, and those of another upload others.
        self._series = secrets.token_hex(8)

    async def put(self, index: int, data: bytes) -> None:
        name = base64.b64encode(f"{self._series}-{index:06}".encode()).decode()
        request = self._container.request("PUT", self._key, comp="block", blockid=name)
        request.headers["content-type"] = "application/octet-stream"
        request.headers["content-md5"] = base64.b64encode(await md5_aside(data)).decode()
        request.body = data
        place = self._container.place(self._key)
        await self._container.http.send(request, place, fine=(201,))
        self._blocks[index] = name

    async def finish(self) -> ObjectInfo:
        request = self._container.writing(
            self._key, self._condition, self._metadata, comp="blocklist"
        )
        names = "".join(f"<Latest>{name}</Latest>" for _, name in sorted(self._blocks.items()))
        request.body = f"<BlockList>{names}</BlockList>".encode()
        request.headers["content-type"] = "application/xml"
        place = self._container.place(self._key)
        answer = await self._container.http.send(request, place, fine=(201,), work_bytes=self._size)
        return self._container.written(self._key, self._size, answer, self._metadata, None)

    async def abort(self) -> None:
        return
