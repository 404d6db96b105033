"""nginx on a loopback port, serving folders with listings in every form it knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    access_log {state}/access.log combined buffer=4k flush=1s;
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


@dataclass(slots=True)
class Nginx:
    """A running nginx."""

    port: int
    folder: Path
    state: Path
    process: Process

    def url(self, path: str = "", location: str = "html") -> str:
        """The URL of a path below one of the locations."""
        return f"http://127.0.0.1:{self.port}/{location}/{path}"

    def freeze(self) -> None:
        """Stop answering, connections stay open."""
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def nginx(folder: Path, *, extra: Sequence[str] = ()) -> Iterator[Nginx]:
    """Serve `folder`; `extra` are lines of the server section."""
    state = Path(tempfile.mkdtemp(prefix="nginx-"))
    process: Process | None = None
    try:
        port = free_port()
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", "-stdin"],
            input=PASSWORD.encode(),
            capture_output=True,
            check=True,
        ).stdout.decode()
        (state / "users").write_text(f"{USER}:{hashed}")
        config = state / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                port=port,
                folder=folder,
                state=state,
                privileges="user root;" if os.geteuid() == 0 else "",
                extra="\n        ".join(extra),
            )
        )
        process = Process(["nginx", "-c", config, "-p", state], state / "nginx.log")
        process.wait_ready(lambda: listens(port))
        yield Nginx(port, folder, state, process)
    finally:
        if process is not None:
            process.kill()
        shutil.rmtree(state)
