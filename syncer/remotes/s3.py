"""S3 and what speaks like it: `s3://bucket/prefix`.

Options: `endpoint`, `region`, `profile`, `path_style`, `anonymous`, `identity=instance` (ask
the container's or instance's metadata), `checksum=none` (for servers whose etags look like MD5s
and are none). Requests follow docs.aws.amazon.com/AmazonS3/latest/API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes
from xml.sax.saxutils import escape

from obstore.store import S3Store

from syncer.remotes.aws_credentials import AwsSigner, profile_settings
from syncer.remotes.errors import BadUrl, Garbled, Missing, RemoteError
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import (
    Answer,
    ObjectHttp,
    Request,
    http_date_ns,
    iso_date_ns,
    parse_xml,
    quoted,
    strong_etag,
)
from syncer.remotes.object_options import (
    bucket_and_path,
    checked_endpoint,
    object_capabilities,
    split_metadata,
    yes_or_no,
)
from syncer.remotes.object_reads import NO_RETRIES, client_options, get_by_etag
from syncer.remotes.object_store import Condition, Listed, ObjectInfo
from syncer.remotes.objects import ObjectRemote
from syncer.remotes.remote import Data, Remote
from syncer.remotes.url import RemoteUrl, check_options

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET

OPTIONS = ("endpoint", "region", "profile", "path_style", "anonymous", "identity", "checksum")
DEFAULT_REGION = "us-east-1"
PART_BYTES = 8 << 20
PARTS_MAX = 9_000  # the store takes 10,000
PARTS_AT_ONCE = 4
ORPHAN_S = 2.0  # what a cancelled request for an upload may still take, to learn its name

_USER = "x-amz-meta-"
_KEYED = ("x-amz-server-side-encryption-customer-algorithm", "x-amz-server-side-encryption")


async def open_remote(url: str, options: Mapping[str, str], machinery: Machinery) -> Remote:
    """Open `s3://…`; asks no server. Raises BadUrl, Denied for a profile that is not there."""
    parsed = RemoteUrl.parse(url)
    check_options(parsed, options, OPTIONS)
    bucket, path = bucket_and_path(parsed, "bucket")
    anonymous = yes_or_no(parsed, options, "anonymous", default=False)
    if options.get("identity", "") not in {"", "instance"}:
        raise BadUrl(f"{parsed}: the option identity can only be: instance")
    if options.get("checksum", "etag") not in {"etag", "none"}:
        raise BadUrl(f"{parsed}: the option checksum is etag or none")
    environment = machinery.environment
    profile = options.get("profile") or None
    settings = {} if anonymous and profile is None else profile_settings(machinery, profile)
    chosen = profile is not None  # then it counts more than the environment
    region = (
        options.get("region")
        or (settings.get("region", "") if chosen else "")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or settings.get("region")
        or DEFAULT_REGION
    )
    endpoint = (
        options.get("endpoint")
        or (settings.get("endpoint_url", "") if chosen else "")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or settings.get("endpoint_url")
        or ""
    )
    # A bucket with dots fits no wildcard certificate; servers of one's own have no wildcard names.
    path_style = yes_or_no(parsed, options, "path_style", default=bool(endpoint) or "." in bucket)
    if endpoint:
        base = checked_endpoint(parsed, endpoint)
    else:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        base = f"https://s3.{region}.{domain}"
    if not path_style:
        scheme, _, host = base.partition("://")
        base = f"{scheme}://{bucket}.{host}"
    signer = AwsSigner(
        machinery,
        region,
        lambda: machinery.credentials.find(parsed),
        profile=profile,
        instance=options.get("identity") == "instance",
        anonymous=anonymous,
    )
    store = _Bucket(
        str(parsed),
        bucket,
        ObjectHttp(base, signer, machinery, str(parsed)),
        signer,
        machinery,
        region,
        path_style=path_style,
        etags=options.get("checksum") != "none",
    )
    return ObjectRemote(str(parsed), store, machinery.bridge, path)


class _Bucket:
    """See Store."""

    part_bytes_min = PART_BYTES
    parts_max = PARTS_MAX
    parts_at_once = PARTS_AT_ONCE

    def __init__(
        self,
        url: str,
        bucket: str,
        http: ObjectHttp,
        signer: AwsSigner,
        machinery: Machinery,
        region: str,
        *,
        path_style: bool,
        etags: bool,
    ) -> None:
        self.http = http
        self._url = url
        self._bucket = bucket
        self._root = f"/{bucket}" if path_style else ""
        self._etags = etags
        self.capabilities = object_capabilities(
            read_only_reason="opened anonymously: give credentials" if signer.anonymous else ""
        )
        # Everything it would take from the process's environment is said here.
        endpoint = http.endpoint
        self._reader: S3Store | None = S3Store(
            bucket,
            config={
                "endpoint": endpoint,
                "aws_endpoint_url_s3": endpoint,
                "region": region,
                "virtual_hosted_style_request": not path_style,
                "skip_signature": signer.anonymous,
                "s3_express": False,
                "request_payer": False,
            },
            client_options=client_options(machinery),
            retry_config=NO_RETRIES,
            credential_provider=None if signer.anonymous else signer.provider(),
        )
        self._signer = signer

    def place(self, key: bytes) -> str:
        return f"s3://{self._bucket}/{key.decode('utf-8', 'backslashreplace')}"

    def request(self, method: str, key: bytes = b"", **query: str) -> Request:
        """A request for an object, or for the bucket. `_` in a parameter stands for `-`."""
        path = f"{self._root}/{quoted(key)}" if key else self._root or "/"
        return Request(method, path, {name.replace("_", "-"): v for name, v in query.items()})

    # Finding.

    async def list(self, prefix: bytes, following: str, keys_max: int) -> Listed:
        request = self.request("GET", list_type="2", delimiter="/", encoding_type="url")
        # An odd byte in a prefix cannot be asked for: it stands in no URL as UTF-8.
        request.query["prefix"] = prefix.decode("utf-8", "surrogateescape")
        request.query["max-keys"] = str(keys_max)
        if following:
            request.query["continuation-token"] = following
        answer = await self.http.send(request, self._url)
        return await asyncio.to_thread(self._parse_listing, answer.body)

    def _parse_listing(self, body: bytes) -> Listed:
        root = parse_xml(body, self._url)
        if root.tag != "ListBucketResult":
            raise Garbled(f"{self._url}: the server's answer is no listing: is it an S3 endpoint?")
        encoded = root.findtext("EncodingType") == "url"

        def key(text: str | None) -> bytes:
            if text is None:
                raise Garbled(f"{self._url}: the listing has an entry without a key")
            return unquote_to_bytes(text.replace("+", " ")) if encoded else text.encode()

        objects = []
        for found in root.iterfind("Contents"):
            size = found.findtext("Size") or ""
            if not size.isdecimal():
                raise Garbled(f"{self._url}: the listing has an entry without a size")
            objects.append(
                ObjectInfo(
                    key(found.findtext("Key")),
                    int(size),
                    strong_etag(found.findtext("ETag") or ""),
                    iso_date_ns(found.findtext("LastModified") or ""),
                )
            )
        prefixes = [key(found.findtext("Prefix")) for found in root.iterfind("CommonPrefixes")]
        following = root.findtext("NextContinuationToken") or ""
        if (root.findtext("IsTruncated") or "").strip() == "true" and not following:
            raise Garbled(f"{self._url}: the listing is cut short and names no next page")
        return Listed(objects, prefixes, following)

    async def head(self, key: bytes) -> ObjectInfo:
        answer = await self.http.send(self.request("HEAD", key), self.place(key))
        return self.info_of(key, answer)

    def info_of(self, key: bytes, answer: Answer) -> ObjectInfo:
        headers = answer.headers
        etag = strong_etag(headers.get("etag", ""))
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
            etag,
            http_date_ns(headers.get("last-modified", "")),
            md5=self.md5_of_etag(etag) if _etag_is_content(headers) else None,
            metadata=metadata,
        )

    def md5_of_etag(self, etag: str) -> bytes | None:
        digest = etag.strip('"')
        if not self._etags or len(digest) != 32:
            return None  # of several parts: `…-n`
        with contextlib.suppress(ValueError):
            return bytes.fromhex(digest)
        return None

    async def confirms_md5(self, info: ObjectInfo) -> bool:
        # Encrypted with a key of KMS or the caller's, the etag is a hash of something else.
        now = await self.head(info.key)
        return now.etag != info.etag or now.md5 is not None

    # Bytes.

    async def get(
        self, key: bytes, etag: str, start: int, end: int | None, size_max: int
    ) -> tuple[ObjectInfo, Data]:
        if not self._signer.anonymous:
            await self._signer.keys()  # so that it is our error which says what is missing
        return await get_by_etag(self, self._reader, key, etag, start, end, size_max)

    # Changing.

    async def put(
        self, key: bytes, data: bytes, condition: Condition, metadata: Mapping[str, bytes]
    ) -> ObjectInfo:
        request = self._write("PUT", key, condition, metadata)
        request.body = data  # its SHA-256 is signed: the server refuses what was damaged
        answer = await self.http.send(request, self.place(key))
        return ObjectInfo(key, len(data), strong_etag(answer.headers.get("etag", "")))

    def _write(
        self, method: str, key: bytes, condition: Condition, metadata: Mapping[str, bytes] | None,
        **query: str,
    ) -> Request:  # fmt: skip
        request = self.request(method, key, **query)
        if metadata is not None:
            kind, user = split_metadata(metadata, self.place(key))
            request.headers["content-type"] = kind
            request.headers |= {_USER + name: value for name, value in user.items()}
        if condition.absent:
            request.headers["if-none-match"] = "*"
        elif condition.etag:
            request.headers["if-match"] = condition.etag
        return request

    async def begin(
        self, key: bytes, size: int, condition: Condition, metadata: Mapping[str, bytes]
    ) -> _Parts:
        request = self._write("POST", key, Condition(), metadata, uploads="")
        sending = asyncio.create_task(self.http.send(request, self.place(key)))
        try:
            answer = await asyncio.shield(sending)
        except asyncio.CancelledError:
            # The server may have begun it: learn its name, to take it back.
            with contextlib.suppress(RemoteError, TimeoutError):
                answer = await asyncio.wait_for(sending, ORPHAN_S)
                await asyncio.wait_for(self._parts(key, size, condition, answer).abort(), ORPHAN_S)
            raise
        return self._parts(key, size, condition, answer)

    def _parts(self, key: bytes, size: int, condition: Condition, answer: Answer) -> _Parts:
        name = parse_xml(answer.body, self.place(key)).findtext("UploadId")
        if not name:
            raise Garbled(f"{self.place(key)}: the server began no upload")
        return _Parts(self, key, size, condition, name)

    async def copy(self, source: ObjectInfo, key: bytes, condition: Condition) -> None:
        await self._copy(source, self._write("PUT", key, condition, None), key)

    async def _copy(self, source: ObjectInfo, request: Request, key: bytes) -> None:
        request.headers["x-amz-copy-source"] = f"/{self._bucket}/{quoted(source.key)}"
        if source.etag:
            request.headers["x-amz-copy-source-if-match"] = source.etag
        answer = await self.http.send(request, self.place(key), work_bytes=source.size)
        self.check(answer, self.place(key))

    def check(self, answer: Answer, place: str) -> ET.Element:
        """The root of an answer that may be an error in spite of its status."""
        root = parse_xml(answer.body, place)
        if root.tag == "Error":
            raise self.http.refused(Answer(500, answer.headers, answer.body), place)
        return root

    async def delete(self, info: ObjectInfo) -> None:
        await self.http.send(
            self.request("DELETE", info.key), self.place(info.key), fine=(200, 204)
        )

    async def set_metadata(self, info: ObjectInfo, metadata: Mapping[str, bytes]) -> None:
        # An object's metadata cannot be changed: it is copied onto itself.
        kept = {name: value for name, value in info.metadata.items() if name == "content-type"}
        request = self._write("PUT", info.key, Condition(), {**kept, **metadata})
        request.headers["x-amz-metadata-directive"] = "REPLACE"
        await self._copy(info, request, info.key)

    async def close(self) -> None:
        self._reader = None  # its connections end with it
        await self.http.close()


def _etag_is_content(headers: Mapping[str, str]) -> bool:
    return not headers.get(_KEYED[0]) and not headers.get(_KEYED[1], "").startswith("aws:kms")


class _Parts:
    """A multipart upload. See Upload."""

    def __init__(
        self, bucket: _Bucket, key: bytes, size: int, condition: Condition, name: str
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._size = size
        self._condition = condition
        self._name = name
        self._etags: dict[int, str] = {}

    @property
    def _place(self) -> str:
        return self._bucket.place(self._key)

    async def put(self, index: int, data: bytes) -> None:
        request = self._bucket.request(
            "PUT", self._key, partNumber=str(index + 1), uploadId=self._name
        )
        request.body = data
        answer = await self._bucket.http.send(request, self._place)
        self._etags[index] = answer.headers.get("etag", "")

    async def finish(self) -> ObjectInfo:
        parts = "".join(
            f"<Part><PartNumber>{index + 1}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for index, etag in sorted(self._etags.items())
        )
        request = self._bucket._write(  # noqa: SLF001 - one class in two
            "POST", self._key, self._condition, None, uploadId=self._name
        )
        request.body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        request.headers["content-type"] = "application/xml"
        answer = await self._bucket.http.send(request, self._place, work_bytes=self._size)
        root = self._bucket.check(answer, self._place)
        return ObjectInfo(self._key, self._size, strong_etag(root.findtext("ETag") or ""))

    async def abort(self) -> None:
        request = self._bucket.request("DELETE", self._key, uploadId=self._name)
        with contextlib.suppress(Missing):
            await self._bucket.http.send(request, self._place, fine=(200, 204))
