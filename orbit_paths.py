"""Paths as the control API carries them: one encoding that both sides share.

Linux paths are bytes, JSON is text. A path in the API is text in which `%XX` stands for a byte: `%`
itself and every byte that is no part of UTF-8 are written so, everything else as it is. Any other
byte may be written so, too. It stands outside the layers, as `orbit_socket` does.
"""

import re
from urllib.parse import unquote_to_bytes

_ESCAPED = re.compile("[%\udc80-\udcff]")


def path_to_text(path: bytes) -> str:
    """Return a path as text that JSON can carry; `text_to_path` brings it back."""
    text = path.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: f"%{ord(found.group()) & 0xFF:02X}", text)


def text_to_path(text: str) -> bytes:
    """Return the path that a text stands for; a `%` that no two hex digits follow is itself."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
