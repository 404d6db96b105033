"""The control API's server: HTTP on a unix socket, in a thread and a loop of its own.

Why its own thread: `orbit-ctl status` has to answer while the filesystem's loop, a read or a commit
is stuck. Why not `hypercorn.trio.serve`: it offers no look at the accepted socket (whose peer is
checked before a byte is read), and one exception in one connection ends all of them. So connections
are accepted here, and hypercorn speaks HTTP on each behind a barrier.

FastAPI and hypercorn are imported in the thread: they cost half a second that no mount has to wait.
Clients that call meanwhile wait in the socket's backlog.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import structlog
import trio

from ghostd.facade import Control
from ghostd.listener import ControlSocket, peer_allowed

if TYPE_CHECKING:
    from hypercorn.config import Config as HypercornConfig
    from hypercorn.typing import AppWrapper, ASGIFramework

CONNECTIONS_MAX: Final = 32
IDLE_TIMEOUT_S: Final = 15
HEADER_BYTES_MAX: Final = 16 * 1024
# When the descriptors of the process or the system run out, accepting again at once would spin.
ACCEPT_RETRY_S: Final = 0.1

log = structlog.get_logger("ghostd.api")


class ApiServer:
    """Serves `control` on the unix socket at `path`; `start` and `stop` are for any thread."""

    def __init__(self, control: Control, path: Path) -> None:
        self._control = control
        self._path = path
        self._socket: ControlSocket | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._guard = threading.Lock()  # over the two below
        self._stopping = False
        self._loop: tuple[trio.lowlevel.TrioToken, trio.CancelScope] | None = None

    def start(self) -> None:
        """Bind the socket and begin to serve in the background. Raises SocketUnusable."""
        self._socket = ControlSocket(self._path)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop serving and remove the socket; True if the thread ended in time.

        Calls that are running in the daemon go on; their clients see the connection close.
        """
        with self._guard:
            self._stopping = True
            loop = self._loop
        if loop is not None:
            token, scope = loop
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except Exception:
            # Nothing is left to answer with; the mount goes on without its API.
            log.exception("the control API has ended")

    async def _main(self) -> None:
        with trio.CancelScope() as scope:
            with self._guard:
                if self._stopping:
                    return
                self._loop = (trio.lowlevel.current_trio_token(), scope)
            async with trio.open_nursery() as nursery:
                from hypercorn.utils import wrap_app

                from ghostd.api_gate import Gate
                from ghostd.api_routes import build_app

                gate = Gate(build_app(self._control, nursery))
                await self._accept(
                    wrap_app(cast("ASGIFramework", gate), 0, "asgi"), _hypercorn_config(), nursery
                )

    async def _accept(
        self, app: AppWrapper, config: HypercornConfig, nursery: trio.Nursery
    ) -> None:
        assert self._socket is not None
        # A copy: trio closes what it is given, and ControlSocket closes its own.
        listening = trio.socket.from_stdlib_socket(self._socket.listening.dup())
        slots = trio.Semaphore(CONNECTIONS_MAX)
        with listening:
            while True:
                await slots.acquire()
                try:
                    connection, _ = await listening.accept()
                except OSError as error:
                    slots.release()
                    if error.errno not in (errno.ECONNABORTED, errno.EPROTO, errno.EPERM):
                        log.warning("a control connection was not accepted", error=str(error))
                        await trio.sleep(ACCEPT_RETRY_S)
                    continue
                nursery.start_soon(self._connection, app, config, connection, slots)

    async def _connection(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        connection: trio.socket.SocketType,
        slots: trio.Semaphore,
    ) -> None:
        from hypercorn.trio.tcp_server import TCPServer
        from hypercorn.trio.worker_context import WorkerContext
        from hypercorn.typing import ConnectionState

        try:
            with connection:
                if peer_allowed(connection.getsockopt):
                    # Annotated for TLS only; over plain streams the class looks before it leaps.
                    stream = cast(
                        "trio.SSLStream[trio.SocketStream]", trio.SocketStream(connection)
                    )
                    state = ConnectionState({})
                    await TCPServer(app, config, WorkerContext(None), state, stream).run()
        except Exception as error:  # noqa: BLE001  the barrier: one connection, not the server
            log.warning("a control connection ended in an error", error=repr(error))
        finally:
            slots.release()


def _hypercorn_config() -> HypercornConfig:
    from hypercorn.config import Config as HypercornConfig

    config = HypercornConfig()
    config.errorlog = None  # errors are answered and logged by the routes and the barrier
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    config.include_server_header = False
    return config
