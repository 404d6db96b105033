"""SeaweedFS's S3 gateway on a loopback port: signatures, conditions and multipart are real."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import json
import shutil
import signal
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from obstore.store import S3Store

from tests.servers.processes import Process, free_port

ACCESS_KEY, SECRET_KEY = "AKIAORBITTEST", "a/secret+key"
READ_ONLY_KEY, READ_ONLY_SECRET = "AKIAREADONLY", "another/secret"
REGION = "us-east-1"
PUBLIC_BUCKET = "public-data"  # anybody may read and list it

_IDENTITIES = {
    "identities": [
        {
            "name": "tester",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READ_ONLY_KEY, "secretKey": READ_ONLY_SECRET}],
            "actions": ["Read", "List"],
        },
        {"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]},
    ]
}


@dataclass(slots=True)
class SeaweedFs:
    """A running server. Its folder is on the disk: 100,000 objects take about 100 MB."""

    port: int
    folder: Path
    process: Process

    @property
    def endpoint(self) -> str:
        """Where its S3 gateway listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client needs in its environment to be let in."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def is_ready(self) -> bool:
        """True if buckets can be listed: the gateway has found the rest of the server."""
        with contextlib.suppress(httpx.TransportError):
            return self.request("GET", "").status_code == 200
        return False

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket of this name, of at least three letters."""
        self.request("PUT", bucket).raise_for_status()

    def store(self, bucket: str) -> S3Store:
        """The bucket for obstore: the quickest way to fill it."""
        return S3Store(
            bucket,
            config={
                "access_key_id": ACCESS_KEY,
                "secret_access_key": SECRET_KEY,
                "aws_endpoint_url_s3": self.endpoint,
                "region": REGION,
            },
            client_options={"allow_http": True},
        )

    def request(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        query: Mapping[str, str] = {},
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        client: httpx.Client | None = None,
    ) -> httpx.Response:
        """One signed request of our own, apart from any library under test."""
        url, signed = self.signed(method, bucket, key, query=query, body=body, headers=headers)
        send = client.request if client is not None else httpx.request
        return send(method, url, headers=signed, content=body, timeout=60.0)

    def signed(
        self,
        method: str,
        bucket: str,
        key: str = "",
        *,
        query: Mapping[str, str] = {},
        body: bytes = b"",
        headers: Mapping[str, str] = {},
    ) -> tuple[str, dict[str, str]]:
        """The URL and headers of such a request (AWS Signature Version 4)."""
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        path = "/" + bucket + (f"/{urllib.parse.quote(key, safe='/-_.~')}" if key else "")
        asked = "&".join(
            f"{urllib.parse.quote(name, safe='-_.~')}={urllib.parse.quote(value, safe='-_.~')}"
            for name, value in sorted(query.items())
        )
        digest = hashlib.sha256(body).hexdigest()
        sent = {
            **headers,
            "host": f"127.0.0.1:{self.port}",
            "x-amz-content-sha256": digest,
            "x-amz-date": stamp,
        }
        names = ";".join(sorted(sent))
        canonical = "\n".join(
            [method, path, asked, *(f"{n}:{sent[n]}" for n in sorted(sent)), "", names, digest]
        )
        scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        secret = b"AWS4" + SECRET_KEY.encode()
        for part in scope.split("/"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
        sent["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return f"{self.endpoint}{path}" + (f"?{asked}" if asked else ""), sent

    def freeze(self) -> None:
        """Stop answering, connections stay open."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def seaweedfs() -> Iterator[SeaweedFs]:
    """A server without buckets save the public one. Ready after about 4 s."""
    folder = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
    inner = {role: free_port() for role in ("master", "volume", "filer", "s3")}
    process: Process | None = None
    try:
        (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
        (folder / "data").mkdir()
        port = free_port()
        process = Process(_command(folder, port, inner), folder / "log")
        server = SeaweedFs(port, folder, process)
        process.wait_ready(server.is_ready)
        server.make_bucket(PUBLIC_BUCKET)
        yield server
    finally:
        if process is not None:
            process.kill()  # asked politely, it takes 27 s
        for role, grpc in inner.items():
            # No option moves these.
            Path(f"/tmp/seaweedfs-{role}-grpc-{grpc}.sock").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _command(folder: Path, port: int, inner: Mapping[str, int]) -> list[str]:
    """Everything on ports of its own and on the loopback, and no word to the makers."""
    return [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{role}.port={free_port()}" for role in inner if role != "s3"),
        *(f"-{role}.port.grpc={grpc}" for role, grpc in inner.items()),
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        "-volume.max=0",  # as many volumes as the disk holds
        "-filer",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3",
        f"-s3.port={port}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",
    ]
