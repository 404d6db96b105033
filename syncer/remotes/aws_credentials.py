"""AWS credentials from where AWS's own tools look, and requests signed with them (version 4).

In this order: the credentials file of this program, the environment, the profile in
`~/.aws/credentials` and `~/.aws/config`. The metadata of a container or an instance is asked only
when told to: elsewhere nobody answers there. Signing follows
docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html.
"""

from __future__ import annotations

import configparser
import datetime as dt
import hashlib
import hmac
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from syncer.remotes.credentials import Login
from syncer.remotes.errors import Denied, Unreachable
from syncer.remotes.machinery import Machinery
from syncer.remotes.object_http import Request
from syncer.remotes.url import CREDENTIALS_CURE

if TYPE_CHECKING:
    from obstore.store import S3Credential

FRESH_S = 60.0  # how long credentials are used before the files are looked at again
METADATA_S = 2.0  # what a metadata service on the same host may take
INSTANCE = "http://169.254.169.254"
CONTAINER = "http://169.254.170.2"
_ELSEWHERE = ("credential_process", "sso_session", "sso_start_url", "role_arn")


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """One set of credentials; shows no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires_s: float | None = None  # since 1970
    source: str = ""


def profile_settings(machinery: Machinery, profile: str | None) -> dict[str, str]:
    """What the two files of AWS say of a profile. Raises Denied for one that is not there."""
    environment = machinery.environment
    name = profile or environment.get("AWS_PROFILE") or "default"
    folder = machinery.home / ".aws"
    files = (
        (Path(environment.get("AWS_CONFIG_FILE") or folder / "config"), True),
        (Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials"), False),
    )
    settings: dict[str, str] = {}
    found = False
    for path, prefixed in files:
        parser = configparser.RawConfigParser(default_section="", strict=False)
        try:
            with path.open(encoding="utf-8") as file:
                parser.read_file(file)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise Denied(f"{path}: cannot be read: {type(error).__name__}") from None
        except configparser.Error:
            raise Denied(f"{path}: not an AWS configuration") from None
        section = f"profile {name}" if prefixed and name != "default" else name
        if parser.has_section(section):
            found = True
            settings.update(parser.items(section))
    if not found and (profile or environment.get("AWS_PROFILE")):
        raise Denied(f"there is no profile {name!r} in {folder}: see `aws configure list-profiles`")
    return settings


class AwsSigner:
    """Finds credentials, keeps them while they are fresh, signs with them. See Signer."""

    wants_sha256 = True

    def __init__(
        self,
        machinery: Machinery,
        region: str,
        login: Callable[[], Login],
        *,
        profile: str | None,
        instance: bool,
        anonymous: bool,
    ) -> None:
        """`login`: what the credentials file says, looked up again each time."""
        self._machinery = machinery
        self._region = region
        self._login = login
        self._profile = profile
        self._instance = instance
        self.anonymous = anonymous
        self._keys: AwsKeys | None = None
        self._looked_s = 0.0  # monotonic

    @property
    def source(self) -> str:
        """See Signer."""
        if self.anonymous:
            return "no credentials (anonymous)"
        return self._keys.source if self._keys else "the credentials"

    def forget(self) -> None:
        """See Signer."""
        self._keys = None

    async def keys(self) -> AwsKeys:
        """The credentials to use now. Raises Denied where there are none."""
        keys = self._keys
        stale = time.monotonic() - self._looked_s > FRESH_S
        if keys is None or (stale if keys.expires_s is None else keys.expires_s - 60 < time.time()):
            keys = self._keys = await self._find()
            self._looked_s = time.monotonic()
        return keys

    async def _find(self) -> AwsKeys:
        login, environment = self._login(), self._machinery.environment
        if "access_key_id" in login or "secret_access_key" in login:
            return _keys(login, "", f"section [{login.section!r}] of the credentials file")
        if self._instance:
            return await self._ask_metadata()
        if not self._profile and environment.get("AWS_ACCESS_KEY_ID"):
            return _keys(environment, "AWS_", "AWS_ACCESS_KEY_ID of the environment", upper=True)
        settings = profile_settings(self._machinery, self._profile)
        name = self._profile or environment.get("AWS_PROFILE") or "default"
        if "aws_access_key_id" in settings:
            return _keys(settings, "aws_", f"profile {name!r} of ~/.aws")
        for setting in _ELSEWHERE:
            if setting in settings:
                raise Denied(
                    f"profile {name!r} of ~/.aws uses {setting}, which only AWS's tools can: put "
                    f"what `aws configure export-credentials` prints into the environment"
                )
        raise Denied(
            "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run "
            f"`aws configure`, {CREDENTIALS_CURE}, or use the option anonymous=true for public "
            "data or identity=instance on a machine of AWS"
        )

    async def _ask_metadata(self) -> AwsKeys:
        """The container's or the instance's role."""
        environment = self._machinery.environment
        relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        full = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        try:
            async with httpx.AsyncClient(timeout=METADATA_S, trust_env=False) as client:
                if relative or full:
                    headers = {}
                    if path := environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
                        headers["authorization"] = _read(path)
                    elif token := environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"):
                        headers["authorization"] = token
                    found = await client.get(full or f"{CONTAINER}{relative}", headers=headers)
                    found.raise_for_status()
                    return _from_metadata(found.json(), "the container's role")
                base = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or INSTANCE
                ticket = await client.put(
                    f"{base.rstrip('/')}/latest/api/token",
                    headers={"x-aws-ec2-metadata-token-ttl-seconds": "300"},
                )
                ticket.raise_for_status()
                headers = {"x-aws-ec2-metadata-token": ticket.text}
                roles = f"{base.rstrip('/')}/latest/meta-data/iam/security-credentials/"
                role = await client.get(roles, headers=headers)
                role.raise_for_status()
                found = await client.get(roles + role.text.strip(), headers=headers)
                found.raise_for_status()
                return _from_metadata(found.json(), "the instance's role")
        except httpx.HTTPStatusError as error:
            raise Denied(
                f"the metadata service gives no credentials ({error.response.status_code}): "
                "attach a role to this machine"
            ) from None
        except httpx.HTTPError:
            raise Unreachable("no metadata service answers: is this a machine of AWS?") from None
        except (OSError, ValueError, KeyError) as error:
            raise Denied(f"the metadata service gives no credentials: {error!r}") from None

    async def sign(self, request: Request, host: str) -> None:
        """See Signer."""
        if self.anonymous:
            return
        sign_v4(request, host, await self.keys(), self._region, dt.datetime.now(dt.UTC))

    def provider(self) -> Callable[[], Coroutine[Any, Any, S3Credential]]:
        """The same credentials for obstore, which asks again 5 minutes before they expire."""

        async def provide() -> S3Credential:
            keys = await self.keys()
            fresh_until = time.time() + 300 + FRESH_S
            return {
                "access_key_id": keys.access_key,
                "secret_access_key": keys.secret_key,
                "token": keys.token or None,
                "expires_at": dt.datetime.fromtimestamp(
                    min(keys.expires_s or fresh_until, fresh_until), dt.UTC
                ),
            }

        return provide


def _keys(values: Mapping[str, str], prefix: str, source: str, *, upper: bool = False) -> AwsKeys:
    def value(name: str) -> str:
        name = prefix + (name.upper() if upper else name)
        return values.get(name, "").strip()

    if not value("access_key_id") or not value("secret_access_key"):
        raise Denied(f"{source}: access key and secret key belong together, one is missing")
    return AwsKeys(
        value("access_key_id"), value("secret_access_key"), value("session_token"), source=source
    )


def _read(path: str) -> str:
    return Path(path).read_text("utf-8").strip()


def _from_metadata(found: Mapping[str, Any], source: str) -> AwsKeys:
    expires = dt.datetime.fromisoformat(str(found["Expiration"]))
    return AwsKeys(
        str(found["AccessKeyId"]),
        str(found["SecretAccessKey"]),
        str(found["Token"]),
        expires.timestamp(),
        source,
    )


def sign_v4(request: Request, host: str, keys: AwsKeys, region: str, now: dt.datetime) -> None:
    """Add the headers of Signature Version 4. `request.body_sha256` is known."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = request.headers
    headers["x-amz-date"] = stamp
    headers["x-amz-content-sha256"] = request.body_sha256
    if keys.token:
        headers["x-amz-security-token"] = keys.token
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    # What proxies and the client may change on the way is left out.
    signed = {n: v for n, v in signed.items() if n not in {"accept-encoding", "content-length"}}
    signed["host"] = host
    names = ";".join(sorted(signed))
    path, _, query = request.target.partition("?")
    canonical = "\n".join(
        [
            request.method,
            path,
            query,
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            request.body_sha256,
        ]
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = b"AWS4" + keys.secret_key.encode()
    for part in scope.split("/"):
        secret = hmac.digest(secret, part.encode(), "sha256")
    signature = hmac.digest(secret, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope},"
        f"SignedHeaders={names},Signature={signature}"
    )
