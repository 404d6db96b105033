"""The seven kinds of place that a user copies between, each with a real server behind it.

A place is filled and read past the code under test: through the server's own folder, or with an
object store's requests. Jobs reach it by its URL alone, with what the environment says, as a user's
would.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import urllib.parse
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx

from tests.remotes.kinds import any_name, utf8_name
from tests.servers.azurite import Azurite, azurite
from tests.servers.fake_gcs import FakeGcs, fake_gcs
from tests.servers.openssh import openssh
from tests.servers.samba import samba
from tests.servers.seaweedfs import SeaweedFs, seaweedfs

BUCKET = "pairs"
KINDS = ("local", "mount", "sftp", "smb", "s3", "az", "gs")
_NS = 10**9


@dataclass(frozen=True, slots=True)
class File:
    """What a file is like. Times in nanoseconds since 1970; None: the place has no times."""

    data: bytes
    mtime_ns: int | None


Files = dict[bytes, File]


class Place(ABC):
    """An empty spot."""

    directories = True  # empty ones are kept
    mtime_resolution_ns = 1

    def __init__(self, url: str) -> None:
        self.url = url

    def holds(self, name: bytes) -> bool:
        """Whether one component may be called that."""
        return any_name(name)

    @abstractmethod
    def fill(self, files: Mapping[bytes, File], directories: Sequence[bytes] = ()) -> None:
        """Write files, with the parents they need, and empty directories."""

    @abstractmethod
    def files(self) -> Files:
        """All that is there, whatever its name."""

    def empty_directories(self) -> set[bytes]:
        """Those with nothing in them."""
        return set()


class Folder(Place):
    """Of this machine, perhaps served."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        mtime_resolution_ns: int = 1,
        holds: Callable[[bytes], bool] = any_name,
    ) -> None:
        super().__init__(url)
        folder.mkdir()
        self.folder = os.fsencode(folder)
        self.mtime_resolution_ns = mtime_resolution_ns
        self._holds = holds

    def holds(self, name: bytes) -> bool:
        return self._holds(name)

    def fill(self, files: Mapping[bytes, File], directories: Sequence[bytes] = ()) -> None:
        for path in directories:
            os.makedirs(os.path.join(self.folder, path))
        for path, file in files.items():
            where = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(where), exist_ok=True)
            with open(where, "wb") as opened:
                opened.write(file.data)
            if file.mtime_ns is not None:
                os.utime(where, ns=(file.mtime_ns, file.mtime_ns))

    def files(self) -> Files:
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                where = os.path.join(folder, name)
                with open(where, "rb") as opened:
                    data = opened.read()
                path = os.path.relpath(where, self.folder)
                found[path] = File(data, os.stat(where).st_mtime_ns)
        return found

    def empty_directories(self) -> set[bytes]:
        return {
            os.path.relpath(folder, self.folder)
            for folder, folders, names in os.walk(self.folder)
            if not folders and not names and folder != self.folder
        }


def _smb_name(name: bytes) -> bool:
    return (
        utf8_name(name)
        and not any(byte in b'\\:*?"<>|' or byte < 32 for byte in name)
        and name[-1:] not in {b".", b" "}
    )


class Objects(Place):
    """A prefix of a bucket."""

    directories = False

    def __init__(self, scheme: str, prefix: str) -> None:
        super().__init__(f"{scheme}://{BUCKET}/{prefix.rstrip('/')}")
        self.prefix = prefix

    def holds(self, name: bytes) -> bool:
        return utf8_name(name)

    def fill(self, files: Mapping[bytes, File], directories: Sequence[bytes] = ()) -> None:
        for path, file in files.items():
            mtime_ns = file.mtime_ns
            metadata = {}
            if mtime_ns is not None:
                metadata = {"mtime": f"{mtime_ns // _NS}.{mtime_ns % _NS:09d}"}
            self.put(self.prefix + path.decode(), file.data, metadata)

    def files(self) -> Files:
        found = {}
        for key in self.keys():
            data, text = self.get(key)
            seconds, _, rest = text.partition(".")
            mtime_ns = int(seconds) * _NS + int(rest.ljust(9, "0")) if text else None
            found[key.removeprefix(self.prefix).encode()] = File(data, mtime_ns)
        return found

    @abstractmethod
    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Write an object."""

    @abstractmethod
    def get(self, key: str) -> tuple[bytes, str]:
        """Its bytes and its `mtime`, "" if it has none."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Those below the prefix."""


class HttpObjects(Objects):
    """Objects that are asked for by plain requests, with their metadata in headers."""

    scheme: str
    meta: str  # what the headers of metadata begin with
    more: Mapping[str, str] = MappingProxyType({})  # headers of what is written

    def __init__(self, server: SeaweedFs | Azurite, client: httpx.Client, prefix: str) -> None:
        super().__init__(self.scheme, prefix)
        self._server = server
        self._client = client

    def _ask(self, method: str, key: str = "", **more: Any) -> httpx.Response:
        answer = self._server.request(method, BUCKET, key, client=self._client, **more)
        return answer.raise_for_status()

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        headers = {f"{self.meta}{name}": value for name, value in metadata.items()}
        self._ask("PUT", key, body=data, headers={**headers, **self.more})

    def get(self, key: str) -> tuple[bytes, str]:
        answer = self._ask("GET", key)
        return answer.content, answer.headers.get(f"{self.meta}mtime", "")


class S3Place(HttpObjects):
    """On SeaweedFS."""

    scheme, meta = "s3", "x-amz-meta-"

    def keys(self) -> list[str]:
        asked = {"list-type": "2", "encoding-type": "url", "prefix": self.prefix}
        root = ET.fromstring(self._ask("GET", query=asked).content)
        keys = root.iterfind("{*}Contents/{*}Key")
        return [urllib.parse.unquote_plus(key.text or "") for key in keys]


class AzurePlace(HttpObjects):
    """On Azurite."""

    scheme, meta = "az", "x-ms-meta-"
    more = MappingProxyType({"x-ms-blob-type": "BlockBlob"})

    def keys(self) -> list[str]:
        asked = {"restype": "container", "comp": "list", "prefix": self.prefix}
        root = ET.fromstring(self._ask("GET", query=asked).content)
        return [each.text or "" for each in root.iterfind("Blobs/Blob/Name")]


class GooglePlace(Objects):
    """On fake-gcs-server."""

    def __init__(self, server: FakeGcs, client: httpx.Client, prefix: str) -> None:
        super().__init__("gs", prefix)
        self._objects = f"{server.endpoint}/storage/v1/b/{BUCKET}/o"
        self._upload = f"{server.endpoint}/upload/storage/v1/b/{BUCKET}/o"
        self._client = client

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        asked = {"uploadType": "media", "name": key}
        self._client.post(self._upload, params=asked, content=data).raise_for_status()
        url = f"{self._objects}/{urllib.parse.quote(key, safe='')}"
        self._client.patch(url, json={"metadata": dict(metadata)}).raise_for_status()

    def get(self, key: str) -> tuple[bytes, str]:
        url = f"{self._objects}/{urllib.parse.quote(key, safe='')}"
        known = self._client.get(url).raise_for_status().json()
        data = self._client.get(url, params={"alt": "media"}).raise_for_status().content
        return data, known.get("metadata", {}).get("mtime", "")

    def keys(self) -> list[str]:
        answer = self._client.get(self._objects, params={"prefix": self.prefix}).raise_for_status()
        return [each["name"] for each in answer.json().get("items", ())]


Maker = Callable[[int], Place]


class Servers:
    """Started when they are first asked for.

    `environment`: what a client needs to reach them, complete when a place of each kind was made.
    """

    def __init__(self, folder: Path, mount: Path | None = None) -> None:
        """`folder`: for everything. `mount`: where a daemon's mount will be."""
        self.home = folder / "home"
        self.environment = {"HOME": str(self.home)}
        self.ports: dict[str, int] = {}  # of the kinds that have one: for a proxy in front
        self._folder = folder
        self._mount_point = mount
        self._numbers = itertools.count()
        self._makers: dict[str, Maker] = {}
        self._stack = contextlib.ExitStack()
        self._client = httpx.Client(trust_env=False, timeout=60.0)
        self._stack.callback(self._client.close)
        self.home.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, kind: str) -> Maker:
        """Have a kind's server running."""
        if kind not in self._makers:
            self._makers[kind] = getattr(self, f"_{kind}")()
        return self._makers[kind]

    def place(self, kind: str) -> Place:
        """A new one."""
        return self.start(kind)(next(self._numbers))

    def _local(self) -> Maker:
        def make(number: int) -> Place:
            folder = self._folder / f"local-{number}"
            return Folder(str(folder), folder)

        return make

    def _mount(self) -> Maker:
        mount = self._mount_point
        assert mount is not None

        def make(number: int) -> Place:
            folder = mount / f"place-{number}"
            return Folder(str(folder), folder)

        return make

    def _sftp(self) -> Maker:
        sshd = self._stack.enter_context(openssh())
        shutil.copytree(sshd.home / ".ssh", self.home / ".ssh")
        self.ports["sftp"] = sshd.port

        def make(number: int) -> Place:
            folder = self._folder / f"sftp-{number}"
            return Folder(sshd.url(folder), folder, mtime_resolution_ns=_NS)

        return make

    def _smb(self) -> Maker:
        shared = self._folder / "shared"
        shared.mkdir()
        server = self._stack.enter_context(samba(shared))
        credentials = self.home / ".config" / "orbit" / "credentials.toml"
        credentials.parent.mkdir(parents=True)
        credentials.write_text(f'["127.0.0.1"]\npassword = "{server.password}"\n')
        credentials.chmod(0o600)

        def make(number: int) -> Place:
            name = f"smb-{number}"
            folder = shared / name
            return Folder(server.url(name), folder, mtime_resolution_ns=100, holds=_smb_name)

        return make

    def _s3(self) -> Maker:
        server = self._stack.enter_context(seaweedfs())
        server.make_bucket(BUCKET)
        self.environment |= server.environment
        self.ports["s3"] = server.port
        return lambda number: S3Place(server, self._client, f"place-{number}/")

    def _az(self) -> Maker:
        server = self._stack.enter_context(azurite())
        server.make_container(BUCKET)
        self.environment |= server.environment
        return lambda number: AzurePlace(server, self._client, f"place-{number}/")

    def _gs(self) -> Maker:
        server = self._stack.enter_context(fake_gcs())
        server.make_bucket(BUCKET)
        self.environment |= server.environment
        return lambda number: GooglePlace(server, self._client, f"place-{number}/")
