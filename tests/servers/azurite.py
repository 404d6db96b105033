"""Azurite, Azure's own emulator, on a loopback port: shared keys and conditions are checked."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hmac
import shutil
import signal
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from obstore.store import AzureStore

from tests.servers.processes import Process, free_port, listens

# The emulator's well-known account, the same everywhere.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_PROGRAM = Path(__file__).with_name("node_modules") / ".bin" / "azurite-blob"


@dataclass(slots=True)
class Azurite:
    """A running server. Its data is in its memory."""

    port: int
    process: Process

    @property
    def endpoint(self) -> str:
        """Where it listens; the account is the first component of every path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an Azure client needs in its environment to be let in."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{ACCOUNT}",
        }

    def make_container(self, container: str, *, public: bool = False) -> None:
        """Make a container of this name, of at least three letters."""
        headers = {"x-ms-blob-public-access": "container"} if public else {}
        self.request(
            "PUT", container, query={"restype": "container"}, headers=headers
        ).raise_for_status()

    def store(self, container: str) -> AzureStore:
        """The container for obstore: the quickest way to fill it."""
        return AzureStore(
            container,
            config={
                "account_name": ACCOUNT,
                "account_key": KEY,
                "endpoint": f"{self.endpoint}/{ACCOUNT}",
            },
            client_options={"allow_http": True},
        )

    def request(
        self,
        method: str,
        container: str,
        key: str = "",
        *,
        query: Mapping[str, str] = {},
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        client: httpx.Client | None = None,
    ) -> httpx.Response:
        """One signed request of our own, apart from any code under test (SharedKey)."""
        path = f"/{ACCOUNT}/{container}" + (
            f"/{urllib.parse.quote(key, safe='/-_.~')}" if key else ""
        )
        kind = "application/octet-stream" if body else ""
        own = {
            **headers,
            "x-ms-date": email.utils.formatdate(usegmt=True),
            "x-ms-version": "2021-12-02",
        }
        text = "\n".join(
            [
                *(method, "", "", str(len(body)) if body else "", "", kind, *[""] * 6),
                *(f"{name}:{own[name]}" for name in sorted(own)),
                f"/{ACCOUNT}{path}",
                *(f"{name}:{query[name]}" for name in sorted(query)),
            ]
        )
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
        own["authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        if kind:
            own["content-type"] = kind
        asked = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        url = f"{self.endpoint}{path}" + (f"?{asked}" if asked else "")
        send = client.request if client is not None else httpx.request
        return send(method, url, headers=own, content=body, timeout=60.0)

    def put(self, container: str, key: str, data: bytes) -> None:
        """Write a blob."""
        headers = {"x-ms-blob-type": "BlockBlob"}
        self.request("PUT", container, key, body=data, headers=headers).raise_for_status()

    def freeze(self) -> None:
        """Stop answering, connections stay open."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    """A server without containers. Ready after about 1 s."""
    folder = Path(tempfile.mkdtemp(prefix="azurite-"))
    process: Process | None = None
    try:
        port = free_port()
        command = [
            _PROGRAM,
            "--blobPort",
            str(port),
            "--inMemoryPersistence",
            "--skipApiVersionCheck",
            "--disableTelemetry",
            "--silent",
        ]
        process = Process(command, folder / "log")
        process.wait_ready(lambda: listens(port))
        yield Azurite(port, process)
    finally:
        if process is not None:
            process.kill()
        shutil.rmtree(folder)
