"""Azure storage accounts and their credentials, and requests signed with them.

Keys, SAS tokens, bearer tokens and connection strings come from the credentials file of this
program, else from the environment variables of Azure's own tools. Signing follows
learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import email.utils
import hmac
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from syncer.remotes.errors import BadUrl, Denied
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import Request
from syncer.remotes.object_options import checked_endpoint
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl

if TYPE_CHECKING:
    from obstore.store import AzureCredential

API_VERSION = "2021-12-02"
FRESH_S = 60.0  # how long credentials are used before they are looked up again

# The emulator's account is the same on every machine, and public.
EMULATOR_ACCOUNT = "devstoreaccount1"
EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
EMULATOR_ENDPOINT = f"http://127.0.0.1:10000/{EMULATOR_ACCOUNT}"

# What a section of the credentials file may have → the environment variables of the same.
_KINDS = {
    "account_key": (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
    ),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
    "bearer_token": ("AZURE_STORAGE_TOKEN", "AZURE_STORAGE_AUTH_TOKEN"),
}
_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
_NAME = re.compile(r"[a-z0-9]{3,24}")


@dataclass(frozen=True, slots=True)
class Account:
    """Where the containers are."""

    name: str
    host: str  # scheme, host and port
    path: str  # before the container, "" or "/account"


@dataclass(frozen=True, slots=True)
class AzureSecret:
    """One credential; shows no secret."""

    kind: str  # account_key, sas_token or bearer_token
    value: str = field(repr=False)
    source: str = ""


def connection_parts(text: str) -> dict[str, str]:
    """The fields of a connection string."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    parts = {name.strip(): value.strip() for name, _, value in pairs}
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {
            "AccountName": EMULATOR_ACCOUNT,
            "AccountKey": EMULATOR_KEY,
            "BlobEndpoint": EMULATOR_ENDPOINT,
        }
    return parts


def _connection(url: RemoteUrl, machinery: Machinery) -> tuple[dict[str, str], str]:
    login = machinery.credentials.find(url)
    if text := login.get("connection_string"):
        return connection_parts(text), f"section [{login.section!r}] of the credentials file"
    text = machinery.environment.get(_CONNECTION, "")
    return connection_parts(text), f"{_CONNECTION} of the environment"


def find_account(
    url: RemoteUrl, machinery: Machinery, *, account: str, endpoint: str, emulator: bool
) -> Account:
    """The account that the options, the credentials file or the environment name."""
    environment = machinery.environment
    if emulator:
        name, endpoint = account or EMULATOR_ACCOUNT, endpoint or EMULATOR_ENDPOINT
    else:
        parts, _ = _connection(url, machinery)
        name = (
            account
            or machinery.credentials.find(url).get("account", "")
            or environment.get("AZURE_STORAGE_ACCOUNT_NAME", "")
            or environment.get("AZURE_STORAGE_ACCOUNT", "")
            or parts.get("AccountName", "")
        )
        endpoint = endpoint or environment.get("AZURE_STORAGE_ENDPOINT", "")
        if not endpoint and name == parts.get("AccountName", name):
            endpoint = parts.get("BlobEndpoint", "")
        suffix = parts.get("EndpointSuffix", "core.windows.net")
        if not name:
            raise BadUrl(f"{url}: which account? Give the option account=NAME")
        endpoint = endpoint or f"https://{name}.blob.{suffix}"
    if not _NAME.fullmatch(name):
        raise BadUrl(f"{url}: {name!r} is no storage account: 3 to 24 small letters and digits")
    scheme, _, rest = endpoint.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    if slash and path != name:
        raise BadUrl(
            f"{url}: the endpoint's path can only be the account: {scheme}://{host}/{name}"
        )
    return Account(name, checked_endpoint(url, f"{scheme}://{host}"), slash + path)


class AzureSigner:
    """Finds the credential, keeps it for a minute, signs with it. See Signer."""

    wants_sha256 = False

    def __init__(
        self,
        url: RemoteUrl,
        machinery: Machinery,
        account: Account,
        *,
        emulator: bool,
        anonymous: bool,
    ) -> None:
        self._url = url
        self._machinery = machinery
        self.account = account
        self._emulator = emulator
        self.anonymous = anonymous
        self._secret: AzureSecret | None = None
        self._looked_s = 0.0  # monotonic

    @property
    def source(self) -> str:
        """See Signer."""
        if self.anonymous:
            return "no credentials (anonymous)"
        return self._secret.source if self._secret else "the credentials"

    def forget(self) -> None:
        """See Signer."""
        self._secret = None

    def secret(self) -> AzureSecret:
        """The credential to use now. Raises Denied where there is none."""
        if self._secret is None or time.monotonic() - self._looked_s > FRESH_S:
            self._secret = _checked(self._find())
            self._looked_s = time.monotonic()
        return self._secret

    def _find(self) -> AzureSecret:
        if self._emulator:
            return AzureSecret("account_key", EMULATOR_KEY, "the emulator's public key")
        login, environment = (
            self._machinery.credentials.find(self._url),
            self._machinery.environment,
        )
        for kind in _KINDS:
            if kind in login:
                source = f"{kind} in section [{login.section!r}] of the credentials file"
                return AzureSecret(kind, login[kind], source)
        parts, source = _connection(self._url, self._machinery)
        from_file = "connection_string" in login
        if not from_file:
            for kind, names in _KINDS.items():
                for name in names:
                    if environment.get(name):
                        return AzureSecret(kind, environment[name], f"{name} of the environment")
        if key := parts.get("AccountKey"):
            return AzureSecret("account_key", key, source)
        if sas := parts.get("SharedAccessSignature"):
            return AzureSecret("sas_token", sas, source)
        raise Denied(
            f"{self._url}: there are no credentials for the account {self.account.name}: set "
            f"AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, {CREDENTIALS_CURE}, or use the "
            "option anonymous=true for public containers"
        )

    async def sign(self, request: Request, host: str) -> None:  # noqa: ARG002 - not signed here
        """See Signer."""
        request.headers["x-ms-date"] = email.utils.format_datetime(
            dt.datetime.now(dt.UTC), usegmt=True
        )
        request.headers["x-ms-version"] = API_VERSION
        if self.anonymous:
            return
        secret = self.secret()
        if secret.kind == "sas_token":
            request.query |= sas_parameters(secret)
        elif secret.kind == "bearer_token":
            request.headers["authorization"] = f"Bearer {secret.value}"
        else:
            signature = shared_key_signature(request, self.account, secret)
            request.headers["authorization"] = f"SharedKey {self.account.name}:{signature}"

    def copy_source(self, path: str) -> str:
        """The URL of a blob that the server is to copy from."""
        source = Request("GET", path)
        secret = self.secret()
        if secret.kind == "sas_token":
            source.query |= sas_parameters(secret)
        return self.account.host + source.target

    def provider(self) -> Callable[[], Coroutine[Any, Any, AzureCredential]]:
        """The same credential for obstore, which asks again 5 minutes before it expires."""

        async def provide() -> AzureCredential:
            secret = self.secret()
            expires = dt.datetime.fromtimestamp(time.time() + 300 + FRESH_S, dt.UTC)
            if secret.kind == "sas_token":
                return {"sas_token": secret.value.removeprefix("?"), "expires_at": expires}
            if secret.kind == "bearer_token":
                return {"token": secret.value, "expires_at": expires}
            return {"access_key": secret.value, "expires_at": expires}

        return provide


def _checked(secret: AzureSecret) -> AzureSecret:
    if secret.kind == "account_key":
        try:
            base64.b64decode(secret.value, validate=True)
        except binascii.Error:
            raise Denied(f"{secret.source}: an account key is base64, this is not") from None
    return secret


def sas_parameters(secret: AzureSecret) -> Mapping[str, str]:
    """The parameters of a URL that a SAS consists of."""
    return dict(parse_qsl(secret.value.removeprefix("?"), keep_blank_values=True))


def shared_key_signature(request: Request, account: Account, secret: AzureSecret) -> str:
    """The signature of a request with the account's key."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    plain = [
        request.method,
        headers.get("content-encoding", ""),
        headers.get("content-language", ""),
        str(len(request.body)) if request.body else "",
        headers.get("content-md5", ""),
        headers.get("content-type", ""),
        "",  # the date is in x-ms-date
        headers.get("if-modified-since", ""),
        headers.get("if-match", ""),
        headers.get("if-none-match", ""),
        headers.get("if-unmodified-since", ""),
        headers.get("range", ""),
    ]
    own = [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    asked = [f"{name.lower()}:{request.query[name]}" for name in sorted(request.query)]
    text = "\n".join([*plain, *own, f"/{account.name}{request.path}", *asked])
    digest = hmac.digest(
        base64.b64decode(secret.value), text.encode("utf-8", "surrogateescape"), "sha256"
    )
    return base64.b64encode(digest).decode()
