"""An S3 server that has every key one can think of: what real servers refuse to store."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote_from_bytes, unquote_to_bytes, urlsplit

DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
ISO = "2025-01-01T00:00:00.000Z"


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _key(key: bytes) -> str:
    return quote_from_bytes(key, safe="")


def listing(objects: Mapping[bytes, bytes], query: Mapping[str, list[str]]) -> bytes:
    """ListObjectsV2: in the order of bytes, in pages, prefixes rolled up at `/`."""
    prefix = query.get("prefix", [""])[0].encode("utf-8", "surrogateescape")
    most = int(query.get("max-keys", ["1000"])[0])
    after = bytes.fromhex(query.get("continuation-token", [""])[0])
    delimiter = query.get("delimiter", [""])[0].encode()
    found: dict[bytes, bytes | None] = {}  # None: a common prefix
    for key in sorted(objects):
        if not key.startswith(prefix):
            continue
        rest, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, b"", b"")
        found[prefix + rest + slash if slash else key] = None if slash else objects[key]
    left = [(name, data) for name, data in found.items() if name > after]
    parts = ["<ListBucketResult><EncodingType>url</EncodingType>"]
    for name, data in left[:most]:
        if data is None:
            parts.append(f"<CommonPrefixes><Prefix>{_key(name)}</Prefix></CommonPrefixes>")
        else:
            parts.append(
                f"<Contents><Key>{_key(name)}</Key><Size>{len(data)}</Size>"
                f"<ETag>{etag(data)}</ETag><LastModified>{ISO}</LastModified></Contents>"
            )
    if len(left) > most:
        token = left[most - 1][0].hex()
        parts.append(
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        )
    return "".join([*parts, "</ListBucketResult>"]).encode()


@contextlib.contextmanager
def hostile_s3(objects: Mapping[bytes, bytes]) -> Iterator[str]:
    """Serve the objects in a bucket of any name, to anybody; gives the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            _, _, rest = url.path.removeprefix("/").partition("/")
            query = parse_qs(url.query, encoding="utf-8", errors="surrogateescape")
            if "list-type" in query:
                self._answer(200, listing(objects, query))
                return
            data = objects.get(unquote_to_bytes(rest))
            if data is None:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            if self.headers.get("If-Match", etag(data)) != etag(data):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            headers = {"ETag": etag(data), "Last-Modified": DATE}
            wanted = self.headers.get("Range")
            if wanted is None:
                self._answer(200, data, {**headers, "Content-Length": str(len(data))})
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self._answer(206, data[start:end], headers)

        do_HEAD = do_GET  # noqa: N815  http.server finds it by this name

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
