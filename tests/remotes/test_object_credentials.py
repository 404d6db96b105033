"""Where object stores find credentials, how requests are signed, and what refusals say of them."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hmac
import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from syncer.remotes import azure, gcs, s3
from syncer.remotes.aws_credentials import AwsKeys, sign_v4
from syncer.remotes.bridge import Bridge
from syncer.remotes.credentials import Credentials
from syncer.remotes.errors import Denied, RemoteError, Unreachable
from syncer.remotes.held import Held
from syncer.remotes.object_http import Request
from syncer.remotes.remote import ROOT, Page, Remote
from tests.remotes import kind_azure, kind_gcs, kind_s3
from tests.remotes.kinds import machinery
from tests.servers.azurite import ACCOUNT, KEY
from tests.servers.seaweedfs import ACCESS_KEY, READ_ONLY_KEY, READ_ONLY_SECRET, REGION, SECRET_KEY

Serve = Callable[[Any], Any]


async def names(remote: Remote) -> set[bytes]:
    found: set[bytes] = set()

    async def take(page: Page) -> None:
        found.update(entry.key for entry in page)

    await remote.list(ROOT, take)
    return found


async def refused(remote: Remote, *secrets: str) -> str:
    """What both ways of asking say, which must not be a secret."""
    with pytest.raises(Denied) as listing:
        await names(remote)
    with pytest.raises(Denied) as reading:
        await remote.read_whole(b"f", 9)
    await remote.close()
    for error in (listing.value, reading.value):
        assert not any(secret in f"{error} {error!r} {error.__context__}" for secret in secrets)
    return f"{listing.value} {reading.value}"


# S3


@pytest.fixture
def way(serve: Serve) -> dict[str, str]:
    """The environment without credentials."""
    server = serve(kind_s3.KIND).server
    server.request("PUT", kind_s3.BUCKET, "credentials/f", body=b"x").raise_for_status()
    return {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": REGION}


URL = f"s3://{kind_s3.BUCKET}/credentials/"


def aws_folder(home: Path, credentials: str = "", config: str = "") -> None:
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(credentials)
    (home / ".aws" / "config").write_text(config)


PROFILES = f"""
[default]
aws_access_key_id = {READ_ONLY_KEY}
aws_secret_access_key = {READ_ONLY_SECRET}

[writer]
aws_access_key_id = {ACCESS_KEY}
aws_secret_access_key = {SECRET_KEY}
"""


async def test_profiles(bridge: Bridge, tmp_path: Path, way: dict[str, str]):
    config = f"[profile elsewhere]\nregion = {REGION}\nendpoint_url = {way['AWS_ENDPOINT_URL']}\n"
    aws_folder(tmp_path, PROFILES + "[elsewhere]\n" + PROFILES.rpartition("]")[2], config)
    for environment, options, writes in (
        (way, {}, False),
        (way, {"profile": "writer"}, True),
        ({**way, "AWS_PROFILE": "writer"}, {}, True),
        # The one that was asked for counts more than the environment.
        (
            {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "mars-1"},
            {"profile": "elsewhere"},
            True,
        ),
    ):
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await s3.open_remote(URL, options, given)
        assert b"f" in await names(remote)
        if writes:
            await remote.write(b"g", Held(b""))
        else:
            with pytest.raises(Denied, match="permission"):
                await remote.write(b"g", Held(b""))
        await remote.close()


async def test_profiles_that_do_not_serve(bridge: Bridge, tmp_path: Path, way: dict[str, str]):
    aws_folder(tmp_path, "[half]\naws_access_key_id = a\n", "[profile sso]\nsso_session = s\n")
    given = machinery(bridge, tmp_path, environment=way)
    with pytest.raises(Denied, match="no profile 'absent'"):
        await s3.open_remote(URL, {"profile": "absent"}, given)
    for profile, word in (("half", "missing"), ("sso", "export-credentials")):
        remote = await s3.open_remote(URL, {"profile": profile}, given)
        assert word in await refused(remote)
    remote = await s3.open_remote(URL, {}, given)
    said = await refused(remote)
    assert all(word in said for word in ("AWS_ACCESS_KEY_ID", "aws configure", "anonymous=true"))


async def test_the_credentials_file_counts_first_and_is_read_again(
    bridge: Bridge, tmp_path: Path, way: dict[str, str]
):
    path = tmp_path / "credentials.toml"

    def say(secret: str) -> None:
        path.write_text(
            f'["s3://{kind_s3.BUCKET}"]\naccess_key_id="{ACCESS_KEY}"\nsecret_access_key="{secret}"\n'
        )
        path.chmod(0o600)

    say("wrong-secret")
    environment = {**way, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    given = machinery(bridge, tmp_path, environment=environment, credentials=Credentials(path))
    remote = await s3.open_remote(URL, {}, given)
    with pytest.raises(Denied, match="section") as denied:
        await names(remote)
    assert "wrong-secret" not in str(denied.value)
    say(SECRET_KEY)
    assert b"f" in await names(remote)
    assert (await remote.read_whole(b"f", 9))[1] == b"x"
    await remote.close()


async def test_wrong_keys(bridge: Bridge, tmp_path: Path, way: dict[str, str]):
    for key, secret, word in (
        (ACCESS_KEY, "not-the-secret", "secret key does not belong"),
        ("AKIANOBODY", "not-the-secret", "does not know this access key"),
    ):
        environment = {**way, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        given = machinery(bridge, tmp_path, environment=environment)
        said = await refused(await s3.open_remote(URL, {}, given), secret)
        assert word in said
        assert "AWS_ACCESS_KEY_ID of the environment" in said


def test_signatures_are_those_of_the_documentation():
    # The example "GET Object" of Amazon's description of Signature Version 4.
    keys = AwsKeys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    request = Request("GET", "/test.txt", headers={"range": "bytes=0-9"})
    request.body_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    sign_v4(
        request,
        "examplebucket.s3.amazonaws.com",
        keys,
        "us-east-1",
        dt.datetime(2013, 5, 24, tzinfo=dt.UTC),
    )
    wanted = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert request.headers["authorization"].endswith(f"Signature={wanted}")


# Metadata services and token servers


class Answers(http.server.ThreadingHTTPServer):
    """Answers by a function of method, path, headers and body, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, reply: Callable[[str, str, Mapping[str, str], bytes], Any]) -> None:
        answers = self
        self.asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answers.asked.append(f"{self.command} {self.path}")
                found = reply(self.command, self.path, self.headers, body)
                data = (
                    b""
                    if found is None
                    else (found if isinstance(found, bytes) else json.dumps(found).encode())
                )
                self.send_response(404 if found is None else 200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = answer  # noqa: N815 - the base class calls them so

            def log_message(self, *args: Any) -> None:
                """Quietly."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def answering(reply: Callable[[str, str, Mapping[str, str], bytes], Any]) -> Iterator[Answers]:
    with Answers(reply) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def role(expires_s: float) -> dict[str, str]:
    expires = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=expires_s)
    return {
        "AccessKeyId": ACCESS_KEY,
        "SecretAccessKey": SECRET_KEY,
        "Token": "",
        "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


async def test_the_role_of_an_instance_or_a_container(
    bridge: Bridge, tmp_path: Path, way: dict[str, str]
):
    def instance(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        if (method, path) == ("PUT", "/latest/api/token"):
            return b"ticket"
        if headers.get("x-aws-ec2-metadata-token") != "ticket":
            return None
        folder = "/latest/meta-data/iam/security-credentials/"
        return {folder: b"the-role", f"{folder}the-role": role(3600)}.get(path)

    def container(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        return role(30) if headers.get("authorization") == "ticket" else None

    with answering(instance) as server:
        environment = {**way, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await s3.open_remote(URL, {"identity": "instance"}, given)
        assert b"f" in await names(remote)
        assert (await remote.read_whole(b"f", 9))[1] == b"x"
        assert len(server.asked) == 3  # once for both
        await remote.close()
        # Not asked unless told to.
        await refused(await s3.open_remote(URL, {}, given))
        assert len(server.asked) == 3
    remote = await s3.open_remote(URL, {"identity": "instance"}, given)
    with pytest.raises(Unreachable, match="metadata"):
        await names(remote)
    await remote.close()
    with answering(container) as server:
        environment = {
            **way,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/role",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "ticket",
        }
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await s3.open_remote(URL, {"identity": "instance"}, given)
        assert b"f" in await names(remote)
        await names(remote)
        assert len(server.asked) == 2  # about to expire: asked again
        await remote.close()


# Azure


@pytest.fixture
def azurite(serve: Serve) -> Any:
    server = serve(kind_azure.KIND).server
    for container, public in (("private-one", False), ("public-one", True)):
        with contextlib.suppress(httpx.HTTPStatusError):  # there already
            server.make_container(container, public=public)
        server.put(container, "f", b"x")
        server.put(container, "odd//f", b"odd")
    return server


def account_sas(permissions: str, expires: str = "2099-01-01") -> str:
    """Signed as learn.microsoft.com/rest/api/storageservices/create-account-sas says."""
    fields = {"sp": permissions, "ss": "b", "srt": "sco", "st": "", "se": expires, "sip": ""}
    tail = {"spr": "", "sv": "2021-12-02", "ses": ""}
    text = "\n".join([ACCOUNT, *fields.values(), *tail.values(), ""])
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
    given = {name: value for name, value in {**fields, **tail}.items() if value}
    return urllib.parse.urlencode({**given, "sig": base64.b64encode(digest).decode()})


async def check_azure(remote: Remote) -> None:
    assert await names(remote) == {b"f", b"odd/"}
    assert (await remote.read_whole(b"f", 9))[1] == b"x"
    assert (await remote.read_whole(b"odd//f", 9))[1] == b"odd"
    await remote.close()


async def test_azure_credentials(bridge: Bridge, tmp_path: Path, azurite: Any):
    endpoint = f"{azurite.endpoint}/{ACCOUNT}"
    connection = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    shared = f"BlobEndpoint={endpoint};SharedAccessSignature={account_sas('rl')}"
    named = {"account": ACCOUNT, "endpoint": endpoint}
    for environment, options in (
        ({"AZURE_STORAGE_CONNECTION_STRING": connection}, {}),
        ({"AZURE_STORAGE_CONNECTION_STRING": shared}, {"account": ACCOUNT}),
        ({"AZURE_STORAGE_ACCOUNT_KEY": KEY}, named),
        ({"AZURE_STORAGE_SAS_TOKEN": "?" + account_sas("rl")}, named),
        ({}, {"emulator": "true", "endpoint": endpoint}),
    ):
        given = machinery(bridge, tmp_path, environment=environment)
        await check_azure(await azure.open_remote("az://private-one", options, given))
    path = tmp_path / "credentials.toml"
    path.write_text(f'["az://private-one"]\naccount="{ACCOUNT}"\nsas_token="{account_sas("rl")}"\n')
    path.chmod(0o600)
    given = machinery(bridge, tmp_path, credentials=Credentials(path))
    await check_azure(await azure.open_remote("az://private-one", {"endpoint": endpoint}, given))
    given = machinery(bridge, tmp_path)
    options = {**named, "anonymous": "true"}
    await check_azure(await azure.open_remote("az://public-one", options, given))


async def test_a_shared_access_signature_can_write_and_copy(
    bridge: Bridge, tmp_path: Path, azurite: Any
):
    sas = account_sas("rwdlac")
    environment = {"AZURE_STORAGE_SAS_TOKEN": sas}
    given = machinery(bridge, tmp_path, environment=environment)
    options = {"account": ACCOUNT, "endpoint": f"{azurite.endpoint}/{ACCOUNT}"}
    remote = await azure.open_remote("az://private-one/sas/", options, given)
    await remote.write(b"a", Held(b"bytes"))
    await remote.rename(b"a", b"b")
    assert (await remote.read_whole(b"b", 9))[1] == b"bytes"
    await remote.delete(b"b")
    await remote.close()


async def test_azure_refusals(bridge: Bridge, tmp_path: Path, azurite: Any):
    options = {"account": ACCOUNT, "endpoint": f"{azurite.endpoint}/{ACCOUNT}"}
    wrong = base64.b64encode(b"wrong" * 8).decode()
    expired = account_sas("rl", "2020-01-01")
    for environment, secret, word in (
        ({"AZURE_STORAGE_ACCOUNT_KEY": wrong}, wrong, "AZURE_STORAGE_ACCOUNT_KEY"),
        ({"AZURE_STORAGE_ACCOUNT_KEY": "%"}, "%%", "base64"),
        ({"AZURE_STORAGE_SAS_TOKEN": expired}, expired[-30:], "AZURE_STORAGE_SAS_TOKEN"),
        ({}, KEY, "AZURE_STORAGE_ACCOUNT_KEY"),
    ):
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await azure.open_remote("az://private-one", options, given)
        assert word in await refused(remote, secret)
    given = machinery(bridge, tmp_path)
    remote = await azure.open_remote("az://private-one", {**options, "anonymous": "true"}, given)
    with pytest.raises(RemoteError):  # the server says that there is none
        await names(remote)
    await remote.close()


# Google


@pytest.fixture(scope="session")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def gcs_endpoint(serve: Serve, bridge: Bridge) -> str:
    server = serve(kind_gcs.KIND)
    with contextlib.suppress(httpx.HTTPStatusError):  # there already
        server.server.make_bucket("credentials")
    server.server.put("credentials", "f", b"x")
    return f"http://127.0.0.1:{server.proxy.port}"


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


async def test_service_accounts_and_users_get_tokens(
    bridge: Bridge, tmp_path: Path, gcs_endpoint: str, private_key: rsa.RSAPrivateKey
):
    forms: list[dict[str, str]] = []

    def reply(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        forms.append(dict(urllib.parse.parse_qsl(body.decode())))
        return {"access_token": "a-token", "expires_in": 3600}

    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with answering(reply) as server:
        uri = f"{server.url}/token"
        account = {
            "type": "service_account",
            "client_email": "me@project",
            "private_key": pem,
            "private_key_id": "7",
            "token_uri": uri,
        }
        user = {
            "type": "authorized_user",
            "client_id": "i",
            "client_secret": "s",
            "refresh_token": "r",
            "token_uri": uri,
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        gcloud = tmp_path / ".config" / "gcloud"
        gcloud.mkdir(parents=True)
        (gcloud / "application_default_credentials.json").write_text(json.dumps(user))
        for environment in (
            {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json")},
            {},
        ):
            given = machinery(bridge, tmp_path, environment=environment)
            remote = await gcs.open_remote("gs://credentials", {"endpoint": gcs_endpoint}, given)
            assert await names(remote) == {b"f"}
            assert (await remote.read_whole(b"f", 9))[1] == b"x"
            await remote.close()
    asserted, refreshed = forms  # one for each remote: both ways of asking share it
    assert (refreshed["grant_type"], refreshed["refresh_token"]) == ("refresh_token", "r")
    header, claims, signature = asserted["assertion"].split(".")
    private_key.public_key().verify(
        _decoded(signature), f"{header}.{claims}".encode(), PKCS1v15(), SHA256()
    )
    said = json.loads(_decoded(claims))
    assert (said["iss"], said["aud"]) == ("me@project", uri)
    assert said["exp"] - said["iat"] == 3600


async def test_google_refusals(bridge: Bridge, tmp_path: Path, gcs_endpoint: str):
    broken = tmp_path / "broken.json"
    broken.write_text('{"type": "service_account", "private_key": "the-key", "client_email": "x"}')
    other = tmp_path / "other.json"
    other.write_text('{"type": "external_account"}')
    for path, word in ((broken, "not a file"), (other, "external_account"), (tmp_path, "read")):
        environment = {"GOOGLE_APPLICATION_CREDENTIALS": os.fspath(path)}
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await gcs.open_remote("gs://credentials", {"endpoint": gcs_endpoint}, given)
        assert word in await refused(remote, "the-key")
    given = machinery(bridge, tmp_path)
    remote = await gcs.open_remote("gs://credentials", {"endpoint": gcs_endpoint}, given)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in await refused(remote)
    with answering(lambda *_: None) as server:
        user = {
            "type": "authorized_user",
            "client_id": "i",
            "client_secret": "the-secret",
            "refresh_token": "r",
            "token_uri": server.url,
        }
        other.write_text(json.dumps(user))
        environment = {"GOOGLE_APPLICATION_CREDENTIALS": os.fspath(other)}
        given = machinery(bridge, tmp_path, environment=environment)
        remote = await gcs.open_remote("gs://credentials", {"endpoint": gcs_endpoint}, given)
        assert "gives no token" in await refused(remote, "the-secret")
