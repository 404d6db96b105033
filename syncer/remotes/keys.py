"""Keys where names are a Unix system's. Pure."""

from __future__ import annotations

from syncer.remotes.errors import Unsupported


def components(key: bytes) -> list[bytes]:
    """The names in a key; empty for the root. Raises Unsupported for what no file can be called."""
    names = key.removesuffix(b"/").split(b"/") if key else []
    for name in names:
        if name in {b"", b".", b".."} or b"\0" in name:
            raise Unsupported(f"{key!r}: no file can be called {name!r}")
    return names
