"""What every request passes before it reaches a route: limits, and an eye on the client.

The API shares the interpreter with the mount, so it takes no more requests a second than the mount
stands without noticing, and no more at once than it has slots.
"""

from __future__ import annotations

import json
from typing import Final, cast

import structlog
import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS_PER_S_MAX: Final = 200  # at 300/s the mount's median latency was still the same
BURST_MAX: Final = 200
# POSTs may wait for minutes: they leave connections free for those who only ask.
POSTS_MAX: Final = 16
BODY_BYTES_MAX: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 5.0

log = structlog.get_logger("ghostd.api")


class Bucket:
    """A token bucket: `burst` requests at once, `rate_per_s` in the long run. Told the time."""

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._then_s = now_s

    def take(self, now_s: float) -> bool:
        """Return True and spend a token, or False when none is left."""
        grown = self._tokens + (now_s - self._then_s) * self._rate_per_s
        self._tokens = min(self._burst, grown)
        self._then_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Gate:
    """An ASGI application around another one; see the head of the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bucket = Bucket(REQUESTS_PER_S_MAX, BURST_MAX, trio.current_time())
        self._posts = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections (websockets) are closed."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        if not self._bucket.take(trio.current_time()):
            await _refuse(send, 429, "too_many_requests", "too many requests", "ask less often")
            return
        if scope["method"] != "POST":
            await self._serve(scope, receive, send)
            return
        if self._posts >= POSTS_MAX:
            message = f"{POSTS_MAX} calls are waiting already"
            await _refuse(send, 429, "too_many_requests", message, "wait for them to end")
            return
        self._posts += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._posts -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(BODY_TIMEOUT_S) as patience:
            body = await _read_body(receive)
        if patience.cancelled_caught:
            await _refuse(send, 408, "timeout", "the request's body did not arrive", "")
            return
        if body is None:
            message = f"a request's body has at most {BODY_BYTES_MAX} bytes"
            await _refuse(send, 413, "too_large", message, "")
            return

        read = False

        async def receive_once() -> Message:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await trio.sleep_forever()  # the client is watched below
            raise AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            try:
                await self._app(scope, receive_once, send)
            except Exception:
                # Starlette has answered (500) and raises so that servers can log it.
                log.exception("a control request failed", path=scope["path"])
            nursery.cancel_scope.cancel()


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None when it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += cast("bytes", message.get("body", b""))
        if len(body) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def problem(error: str, message: str, hint: str) -> bytes:
    """Return the body of every answer that is not a success."""
    return json.dumps({"error": error, "message": message, "hint": hint}).encode()


async def _refuse(send: Send, status: int, error: str, message: str, hint: str) -> None:
    body = problem(error, message, hint)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
