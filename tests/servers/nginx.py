"""nginx on a loopback port, serving folders with listings in every form it knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers.processes import Process, free_port, listens

USER, PASSWORD = "reader", "open:sesame"

# One process, in the foreground; every location serves the same folder in another manner.
_CONFIG = """\
daemon off;
master_process off;
pid {state}/pid;
error_log {state}/error.log;
{privileges}
events {{ worker_connections 512; }}
http {{
    log_format short "$request_method $request_uri $status $body_bytes_sent";
    access_log {state}/access.log short;
    types {{ application/octet-stream bin; text/plain txt; }}
    default_type application/octet-stream;
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    server {{
        listen 127.0.0.1:{port};
        autoindex on;
        location /html/ {{ alias {folder}/; }}
        location /json/ {{ alias {folder}/; autoindex_format json; }}
        location /rough/ {{ alias {folder}/; autoindex_exact_size off; autoindex_localtime on; }}
        location /whole/ {{ alias {folder}/; max_ranges 0; }}
        location /no-etag/ {{ alias {folder}/; etag off; }}
        location /unlisted/ {{ alias {folder}/; autoindex off; }}
        location /private/ {{
            alias {folder}/;
            auth_basic "private";
            auth_basic_user_file {state}/users;
        }}
        {extra}
    }}
}}
"""


class Nginx:
    """A running nginx."""

    def __init__(self, folder: Path, state: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._state = state
        self._process: Process | None = None

    def url(self, path: str = "", location: str = "html") -> str:
        """The URL of a path below one of the locations."""
        return f"http://127.0.0.1:{self.port}/{location}/{path}"

    def requests(self) -> list[str]:
        """What it was asked, one line each: method, target, status."""
        return (self._state / "access.log").read_text().splitlines()

    def start(self) -> None:
        """Start it, at the same address each time, and wait until it listens."""
        assert self._process is None
        self._process = Process(
            ["nginx", "-c", self._state / "nginx.conf", "-p", self._state],
            self._state / "nginx.log",
        )
        self._process.wait_ready(lambda: listens(self.port))

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def freeze(self) -> None:
        """Stop answering; connections stay open."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.signal(signal.SIGCONT)


@contextlib.contextmanager
def nginx(folder: Path, *, extra: Sequence[str] = ()) -> Iterator[Nginx]:
    """Serve `folder`; `extra` are lines of the server section."""
    state = Path(tempfile.mkdtemp(prefix="nginx-"))
    server = Nginx(folder, state, free_port())
    try:
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", "-stdin"],
            input=PASSWORD.encode(),
            capture_output=True,
            check=True,
        ).stdout.decode()
        (state / "users").write_text(f"{USER}:{hashed}")
        config = _CONFIG.format(
            port=server.port,
            folder=folder,
            state=state,
            privileges="user root;" if os.geteuid() == 0 else "",
            extra="\n        ".join(extra),
        )
        (state / "nginx.conf").write_text(config)
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(state)
