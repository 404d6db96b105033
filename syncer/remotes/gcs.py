"""Google Cloud Storage: `gs://bucket/prefix`.

Options: `endpoint`, `anonymous`, `identity=instance` (ask the instance's metadata). Requests
follow cloud.google.com/storage/docs/json_api, bytes are read through the XML interface, as obstore
does. An object's generation is its etag here: it pins reads and conditions writes alike.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from obstore.store import GCSStore

from syncer.remotes.digests import md5_aside, md5_of_header
from syncer.remotes.errors import BadUrl, Changed, Garbled, RemoteError
from syncer.remotes.google_credentials import GoogleSigner
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import Answer, ObjectHttp, Request, iso_date_ns, quoted
from syncer.remotes.object_options import (
    bucket_and_path,
    checked_endpoint,
    object_capabilities,
    split_metadata,
    yes_or_no,
)
from syncer.remotes.object_reads import NO_RETRIES, client_options, get, get_plainly, obstore_can
from syncer.remotes.object_store import Condition, Listed, ObjectInfo, TooLarge
from syncer.remotes.objects import ObjectRemote
from syncer.remotes.remote import Data, Remote
from syncer.remotes.url import RemoteUrl, check_options

OPTIONS = ("endpoint", "anonymous", "identity")
ENDPOINT = "https://storage.googleapis.com"
PART_BYTES = 16 << 20  # one after the other: larger than those that go side by side
PARTS_MAX = 1 << 20
ORPHAN_S = 2.0  # what a cancelled request for an upload may still take, to learn its name

_FIELDS = "name,size,generation,updated,md5Hash,contentType,contentEncoding,metadata"


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """Open `gs://…`; asks no server. Raises BadUrl."""
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, OPTIONS)
    bucket, path = bucket_and_path(parsed, "bucket")
    anonymous = yes_or_no(parsed, options, "anonymous", default=False)
    if options.get("identity", "") not in {"", "instance"}:
        raise BadUrl(f"{parsed}: the option identity can only be: instance")
    emulator = machinery.environment.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    endpoint = checked_endpoint(parsed, options.get("endpoint") or emulator or ENDPOINT)
    instance = options.get("identity") == "instance"
    signer = GoogleSigner(parsed, machinery, instance=instance, anonymous=anonymous)
    http = ObjectHttp(endpoint, signer, machinery, str(parsed))
    store = _Bucket(str(parsed), bucket, http, signer, machinery)
    return ObjectRemote(str(parsed), store, machinery.bridge, path)


class _Bucket:
    """See Store."""

    part_bytes_min = PART_BYTES
    parts_max = PARTS_MAX
    parts_at_once = 1

    def __init__(
        self, url: str, bucket: str, http: ObjectHttp, signer: GoogleSigner, machinery: Machinery
    ) -> None:
        self.http = http
        self._url = url
        self._bucket = bucket
        self._signer = signer
        self._root = f"/storage/v1/b/{quoted(bucket.encode(), '')}/o"
        self.capabilities = object_capabilities(
            read_only_reason="opened anonymously: give credentials" if signer.anonymous else ""
        )
        self._reader: GCSStore | None = GCSStore(
            bucket,
            config={"base_url": http.endpoint, "skip_signature": signer.anonymous},
            # Else the server decompresses what is stored as gzip, and sizes and ranges differ.
            client_options=client_options(machinery, {"accept-encoding": "gzip"}),
            retry_config=NO_RETRIES,
            credential_provider=None if signer.anonymous else signer.provider(),
        )

    def place(self, key: bytes) -> str:
        """An object, for messages."""
        return f"gs://{self._bucket}/{key.decode('utf-8', 'backslashreplace')}"

    def _request(self, method: str, key: bytes | None = None, **query: str) -> Request:
        path = self._root if key is None else f"{self._root}/{quoted(key, '-_.~')}"
        return Request(method, path, query)

    def _json(self, answer: Answer, place: str) -> Mapping[str, Any]:
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Garbled(f"{place}: the server's answer is not JSON: is it Google's?")
        return found

    # Finding.

    async def list(self, prefix: bytes, following: str, keys_max: int) -> Listed:
        request = self._request("GET", delimiter="/", maxResults=str(keys_max))
        request.query["fields"] = f"nextPageToken,prefixes,items({_FIELDS})"
        if prefix:
            request.query["prefix"] = prefix.decode("utf-8", "surrogateescape")
        if following:
            request.query["pageToken"] = following
        answer = await self.http.send(request, self._url)
        return await asyncio.to_thread(self._parse_listing, answer)

    def _parse_listing(self, answer: Answer) -> Listed:
        found = self._json(answer, self._url)
        try:
            objects = [self._info(item) for item in found.get("items") or ()]
            prefixes = [prefix.encode() for prefix in found.get("prefixes") or ()]
        except (AttributeError, TypeError):
            raise Garbled(f"{self._url}: the listing makes no sense") from None
        return Listed(objects, prefixes, str(found.get("nextPageToken") or ""))

    def _info(self, item: Mapping[str, Any]) -> ObjectInfo:
        """From an object's resource. Raises Garbled."""
        try:
            # Nothing is what the emulator keeps of a name that was taken away.
            metadata = {
                str(name).lower(): str(value).encode()
                for name, value in item.get("metadata", {}).items()
                if value
            }
            if kind := item.get("contentType"):
                metadata["content-type"] = str(kind).encode()
            return ObjectInfo(
                item["name"].encode(),
                int(item["size"]),
                str(item["generation"]),
                iso_date_ns(item["updated"]),
                md5_of_header(item.get("md5Hash", "")),
                metadata,
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Garbled(f"{self._url}: an object's description makes no sense") from None

    async def head(self, key: bytes) -> ObjectInfo:
        answer = await self.http.send(self._request("GET", key, fields=_FIELDS), self.place(key))
        return self._info(self._json(answer, self.place(key)))

    def md5_of_etag(self, etag: str) -> bytes | None:  # noqa: ARG002 - no etag is one here
        return None

    async def confirms_md5(self, info: ObjectInfo) -> bool:  # noqa: ARG002 - likewise
        return True

    # Bytes.

    async def get(
        self, key: bytes, etag: str, start: int, end: int | None, size_max: int
    ) -> tuple[ObjectInfo, Data]:
        place = self.place(key)
        if obstore_can(key):
            if not self._signer.anonymous:
                await self._signer.token()  # so that it is our error which says what is missing
            condition = {"version": etag} if etag else {}
            info, generation, data = await get(
                self._reader, self.http, key, place, condition,
                start=start, end=end, size_max=size_max,
            )  # fmt: skip
            return ObjectInfo(
                key, info.size, generation, info.mtime_ns, info.md5, info.metadata
            ), data
        info = await self.head(key)
        if etag and info.etag != etag:
            raise Changed(f"{place}: is not the version asked for any more")
        if end is None and info.size > size_max:
            raise TooLarge(f"{place} is larger than {size_max} bytes")
        request = self._request("GET", key, alt="media", generation=info.etag)
        request.headers["accept-encoding"] = "gzip"
        answer = await get_plainly(
            self.http, request, place, start, info.size if end is None else end
        )
        return info, answer.body

    # Changing.

    def _writing(
        self, method: str, path: str, key: bytes, condition: Condition, **query: str
    ) -> Request:
        request = Request(method, path, {"name": key.decode("utf-8", "surrogateescape"), **query})
        request.query |= _requirements(condition, "ifGenerationMatch", self.place(key))
        return request

    def _resource(self, key: bytes, metadata: Mapping[str, bytes]) -> dict[str, Any]:
        kind, user = split_metadata(metadata, self.place(key))
        return {"contentType": kind, "metadata": user}

    async def put(
        self, key: bytes, data: bytes, condition: Condition, metadata: Mapping[str, bytes]
    ) -> ObjectInfo:
        request = self._writing(
            "POST", f"/upload{self._root}", key, condition, uploadType="multipart"
        )
        resource = self._resource(key, metadata)
        resource["md5Hash"] = base64.b64encode(
            await md5_aside(data)
        ).decode()  # the server checks it
        border = secrets.token_hex(16)
        head = (
            f"--{border}\r\ncontent-type: application/json; charset=utf-8\r\n\r\n"
            f"{json.dumps(resource)}\r\n--{border}\r\n"
            f"content-type: {resource['contentType']}\r\n\r\n"
        )
        request.headers["content-type"] = f"multipart/related; boundary={border}"
        request.body = b"".join((head.encode(), data, f"\r\n--{border}--\r\n".encode()))
        answer = await self.http.send(request, self.place(key))
        return self.written(answer, key)

    def written(self, answer: Answer, key: bytes) -> ObjectInfo:
        """The object that an answer describes."""
        return self._info(self._json(answer, self.place(key)))

    async def begin(
        self, key: bytes, size: int, condition: Condition, metadata: Mapping[str, bytes]
    ) -> _Session:
        request = self._writing(
            "POST", f"/upload{self._root}", key, condition, uploadType="resumable"
        )
        request.body = json.dumps(self._resource(key, metadata)).encode()
        request.headers["content-type"] = "application/json; charset=utf-8"
        request.headers["x-upload-content-length"] = str(size)
        sending = asyncio.create_task(self.http.send(request, self.place(key), fine=(200, 201)))
        try:
            answer = await asyncio.shield(sending)
        except asyncio.CancelledError:
            # The server may have begun it: learn its address, to take it back.
            with contextlib.suppress(RemoteError, TimeoutError):
                answer = await asyncio.wait_for(sending, ORPHAN_S)
                await asyncio.wait_for(self._session(key, size, answer).abort(), ORPHAN_S)
            raise
        return self._session(key, size, answer)

    def _session(self, key: bytes, size: int, answer: Answer) -> _Session:
        place = urlsplit(answer.headers.get("location", ""))
        if place.netloc and place.netloc != self.http.host:
            raise Garbled(f"{self.place(key)}: the server sends us elsewhere to upload")
        if not place.path:
            raise Garbled(f"{self.place(key)}: the server began no upload")
        query = dict(parse_qsl(place.query, keep_blank_values=True))
        return _Session(self, key, size, place.path, query)

    async def copy(self, source: ObjectInfo, key: bytes, condition: Condition) -> None:
        root = self._root.removeprefix("/storage/v1")
        path = f"{self._root}/{quoted(source.key, '-_.~')}/rewriteTo{root}/{quoted(key, '-_.~')}"
        query = _requirements(condition, "ifGenerationMatch", self.place(key))
        query |= _requirements(Condition(source.etag), "ifSourceGenerationMatch", self.place(key))
        while True:
            request = Request("POST", path, dict(query), {"content-type": "application/json"})
            found = self._json(await self.http.send(request, self.place(key)), self.place(key))
            if found.get("done", True):
                return
            query["rewriteToken"] = str(found.get("rewriteToken", ""))

    async def delete(self, info: ObjectInfo) -> None:
        request = self._request("DELETE", info.key)
        request.query |= _requirements(
            Condition(info.etag), "ifGenerationMatch", self.place(info.key)
        )
        await self.http.send(request, self.place(info.key), fine=(200, 204))

    async def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, bytes]) -> None:
        resource = self._resource(info.key, metadata)
        if "content-type" not in {name.lower() for name in metadata}:
            del resource["contentType"]
        # Null takes a name away.
        gone = dict.fromkeys(info.metadata.keys() - resource["metadata"].keys() - {"content-type"})
        resource["metadata"] |= gone
        request = self._request("PATCH", info.key)
        request.query |= _requirements(
            Condition(info.etag), "ifGenerationMatch", self.place(info.key)
        )
        request.headers["content-type"] = "application/json; charset=utf-8"
        request.body = json.dumps(resource).encode()
        await self.http.send(request, self.place(info.key))

    async def close(self) -> None:
        self._reader = None  # its connections end with it
        await self.http.close()


def _requirements(condition: Condition, name: str, place: str) -> dict[str, str]:
    """The query that makes the server check the condition."""
    if condition.absent:
        return {name: "0"}
    if condition.etag and not condition.etag.isdecimal():
        raise Changed(f"{place}: is not the version asked for")  # of another kind of remote
    return {name: condition.etag} if condition.etag else {}


class _Session:
    """A resumable upload: its parts come in order, the last one makes the object. See Upload."""

    def __init__(
        self, bucket: _Bucket, key: bytes, size: int, path: str, query: Mapping[str, str]
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._size = size
        self._path = path
        self._query = query
        self._sent = 0
        self._last: Answer | None = None

    async def put(self, index: int, data: bytes) -> None:  # noqa: ARG002 - they come in order
        end = self._sent + len(data)
        request = Request("PUT", self._path, dict(self._query), body=data)
        request.headers["content-range"] = f"bytes {self._sent}-{end - 1}/{self._size}"
        fine = (200, 201) if end == self._size else (308,)
        self._last = await self._bucket.http.send(request, self._bucket.place(self._key), fine=fine)
        self._sent = end

    async def finish(self) -> ObjectInfo:
        assert self._last is not None, "no parts"
        return self._bucket.written(self._last, self._key)

    async def abort(self) -> None:
        request = Request("DELETE", self._path, dict(self._query))
        await self._bucket.http.send(
            request, self._bucket.place(self._key), fine=(200, 204, 404, 410, 499)
        )
