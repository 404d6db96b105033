"""Source distributions from PyPI that the tests work on: fetched once by pip, pinned by their
hashes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.mount.harness import run

CACHE = Path(__file__).parents[2] / "build" / "sdists"

# By name: version, file, SHA-256.
SOURCES = {
    "django": (
        "5.1.4",
        "Django-5.1.4.tar.gz",
        "de450c09e91879fa5a307f696e57c851955c910a438a35e6b4c895e86bedc82a",
    ),
    "markdown": (
        "3.7",
        "markdown-3.7.tar.gz",
        "2ae2471477cfd02dbbf038d5d9bc226d40def84b4fe2986e49b59b6b472bbed2",
    ),
}


def source(name: str) -> Path:
    """The archive of a source distribution; downloads it when it is not there yet."""
    version, file, digest = SOURCES[name]
    path = CACHE / file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = CACHE / f"{name}.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        run(*pip, "--no-binary", name, "--dest", CACHE, "--requirement", wanted)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"{path} is not what it was"
    return path
