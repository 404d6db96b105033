"""Google's access tokens from where its own tools look.

In this order: the credentials file of this program, the environment, the file that
GOOGLE_APPLICATION_CREDENTIALS names, what `gcloud auth application-default login` left. The
metadata of an instance is asked only when told to: elsewhere nobody answers there. Tokens follow
developers.google.com/identity/protocols/oauth2/service-account.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from syncer.remotes.errors import Denied, Unreachable
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import Request
from syncer.remotes.url import CREDENTIALS_CURE, RemoteUrl

if TYPE_CHECKING:
    from obstore.store import GCSCredential

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - no secret
METADATA = "metadata.google.internal"
METADATA_S = 2.0  # what a metadata service on the same host may take
FRESH_S = 60.0  # how long a token from the environment is used before it is looked up again
_EARLY_S = 120.0  # a token is renewed so long before it expires
_TOKEN_VARIABLES = ("GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")


@dataclass(frozen=True, slots=True)
class Token:
    """One access token; shows no secret."""

    value: str = field(repr=False)
    expires_s: float  # since 1970
    source: str


class GoogleSigner:
    """Finds an access token, keeps it while it is valid. See Signer."""

    wants_sha256 = False

    def __init__(
        self, url: RemoteUrl, machinery: Machinery, *, instance: bool, anonymous: bool
    ) -> None:
        self._url = url
        self._machinery = machinery
        self._instance = instance
        self.anonymous = anonymous
        self._token: Token | None = None

    @property
    def source(self) -> str:
        """See Signer."""
        if self.anonymous:
            return "no credentials (anonymous)"
        return self._token.source if self._token else "the credentials"

    def forget(self) -> None:
        """See Signer."""
        self._token = None

    async def token(self) -> Token:
        """The token to use now. Raises Denied where there are no credentials."""
        if self._token is None or self._token.expires_s <= time.time():
            self._token = await self._find()
        return self._token

    async def sign(self, request: Request, host: str) -> None:  # noqa: ARG002 - not signed
        """See Signer."""
        if not self.anonymous:
            request.headers["authorization"] = f"Bearer {(await self.token()).value}"

    def provider(self) -> Callable[[], Coroutine[Any, Any, GCSCredential]]:
        """The same token for obstore, which asks again 5 minutes before it expires."""

        async def provide() -> GCSCredential:
            token = await self.token()
            fresh_until = min(token.expires_s, time.time() + FRESH_S) + 300
            return {
                "token": token.value,
                "expires_at": dt.datetime.fromtimestamp(fresh_until, dt.UTC),
            }

        return provide

    async def _find(self) -> Token:
        login, environment = (
            self._machinery.credentials.find(self._url),
            self._machinery.environment,
        )
        if "bearer_token" in login:
            source = f"bearer_token in section [{login.section!r}] of the credentials file"
            return Token(login["bearer_token"], time.time() + FRESH_S, source)
        if self._instance:
            return await self._ask_metadata()
        if path := login.get("application_credentials"):
            return await self._from_file(Path(path))
        for name in _TOKEN_VARIABLES:
            if environment.get(name):
                source = f"{name} of the environment"
                return Token(environment[name], time.time() + FRESH_S, source)
        if path := environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
            return await self._from_file(Path(path))
        config = environment.get("CLOUDSDK_CONFIG") or self._machinery.home / ".config" / "gcloud"
        left = Path(config) / "application_default_credentials.json"
        if _exists(left):
            return await self._from_file(left)
        raise Denied(
            f"{self._url}: there are no Google credentials: set GOOGLE_APPLICATION_CREDENTIALS, "
            f"run `gcloud auth application-default login`, {CREDENTIALS_CURE}, or use the option "
            "anonymous=true for public data or identity=instance on a machine of Google"
        )

    async def _from_file(self, path: Path) -> Token:
        try:
            content = json.loads(_read(path))
            kind = content["type"]
            if kind == "service_account":
                form = {
                    "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                    "assertion": assertion(content, time.time()),
                }
            elif kind == "authorized_user":
                names = ("client_id", "client_secret", "refresh_token")
                form = {"grant_type": "refresh_token", **{name: content[name] for name in names}}
            else:
                raise Denied(f"{path}: credentials of the type {kind!r} cannot be used here")
            where = str(content.get("token_uri") or TOKEN_URL)
        except OSError as error:
            raise Denied(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
            # What is wrong with it may quote the key.
            raise Denied(f"{path}: not a file of Google credentials") from None
        return await self._exchange("POST", where, f"{kind} of {path}", form=form)

    async def _ask_metadata(self) -> Token:
        host = self._machinery.environment.get("GCE_METADATA_HOST") or METADATA
        return await self._exchange(
            "GET",
            f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token",
            "the instance's service account",
            headers={"metadata-flavor": "Google"},
        )

    async def _exchange(
        self,
        method: str,
        url: str,
        source: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Token:
        limit_s = METADATA_S if headers else self._machinery.read_timeout_s
        try:
            async with httpx.AsyncClient(timeout=limit_s, trust_env=not headers) as client:
                answer = await client.request(method, url, data=form, headers=headers)
            if answer.status_code in {400, 401, 403, 404}:
                raise Denied(
                    f"{self._url}: {source}: Google gives no token ({answer.status_code}): the key "
                    "may be revoked or this machine's clock wrong; renew the credentials"
                )
            answer.raise_for_status()
            found = answer.json()
            life_s = float(found["expires_in"])
            return Token(str(found["access_token"]), time.time() + life_s - _EARLY_S, source)
        except (httpx.HTTPError, httpx.InvalidURL):
            raise Unreachable(
                f"{self._url}: {source}: no answer to the request for a token"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise Denied(f"{self._url}: {source}: the answer has no token") from None


def _exists(path: Path) -> bool:
    return path.exists()


def _read(path: Path) -> bytes:
    return path.read_bytes()


def assertion(account: Mapping[str, Any], now_s: float) -> str:
    """What a service account signs to be given a token (RFC 7523). Raises ValueError, KeyError."""
    key = load_pem_private_key(account["private_key"].encode(), password=None)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("not an RSA key")  # noqa: TRY004 - of a file, not of an argument
    header = {"alg": "RS256", "typ": "JWT", "kid": account.get("private_key_id", "")}
    claims = {
        "iss": account["client_email"],
        "scope": SCOPE,
        "aud": account.get("token_uri") or TOKEN_URL,
        "iat": int(now_s),
        "exp": int(now_s) + 3600,
    }
    text = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    return (text + b"." + _base64url(key.sign(text, PKCS1v15(), SHA256()))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
