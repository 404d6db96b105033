"""How the daemon opens remotes: whose credentials, whose breaker, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghostd.config import RemotesConfig
from ghostd.projections import ProjectionRefused
from ghostd.remotes import Remotes
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import Denied
from syncer.remotes.url import RemoteUrl

NAS = RemoteUrl.parse("sftp://nas/x")
SECTION = '["sftp://nas"]\nuser = "me"\npassword = "secret"\n'


@contextmanager
def credentials_of(config: RemotesConfig) -> Iterator[Credentials]:
    remotes = opener(config)
    try:
        yield remotes._machinery.credentials
    finally:
        remotes.stop()


def opener(config: RemotesConfig, *forbidden: Path) -> Remotes:
    return Remotes(config, 30.0, list(forbidden))


async def opened(remotes: Remotes, url: str, options: dict[str, str] | None = None) -> object:
    remotes.start()
    try:
        remote = await remotes.open(url, options or {})
        await remote.close()
        return remote
    finally:
        remotes.stop()


def test_the_usual_credentials_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".config" / "orbit" / "credentials.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text(SECTION)
    usual.chmod(0o644)
    with credentials_of(RemotesConfig()) as credentials:
        with pytest.raises(Denied, match=r"credentials\.toml"):
            credentials.find(NAS)
        usual.chmod(0o600)
        assert credentials.find(NAS)["password"] == "secret"


def test_a_credentials_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    config = RemotesConfig(credentials=str(tmp_path / "none.toml"))
    with credentials_of(config) as credentials, pytest.raises(Denied, match=r"none\.toml"):
        credentials.find(NAS)


@pytest.mark.parametrize("path", ["/mnt/o", "/mnt/o/below", "/mnt", "/"])
async def test_a_folder_that_leads_back_here_is_refused(path: str) -> None:
    with pytest.raises(ProjectionRefused, match="contain each other"):
        await opened(opener(RemotesConfig(), Path("/mnt/o")), f"file://{path}")


async def test_buckets_of_one_server_share_a_breaker_and_others_do_not() -> None:
    remotes = opener(RemotesConfig())
    remotes.start()
    try:
        anonymous = {"anonymous": "true", "region": "x"}
        for bucket, port in (("aaa", 1), ("bbb", 1), ("aaa", 2)):
            endpoint = {"endpoint": f"http://127.0.0.1:{port}"}
            remote = await remotes.open(f"s3://{bucket}/", anonymous | endpoint)
            await remote.close()
        assert set(remotes.hosts.circuits) == {"http://127.0.0.1:1", "http://127.0.0.1:2"}
    finally:
        remotes.stop()
