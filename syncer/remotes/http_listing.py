"""Directory listings of web servers: nginx (HTML and JSON), Apache, lighttpd, Python. Pure.

Names come from the links, never from the text beside them, which servers shorten. What is no
direct child of the listed directory is no entry: other hosts and schemes, parents, links to sort
the listing. Parsers are fed pieces as they arrive and keep no more than a piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit

from syncer.remotes.errors import Garbled, Unsupported

_TITLES = ("index of", "directory listing for")  # what the pages call themselves
_HELD_CHARS_MAX = 1 << 20  # of one tag or object: longer is no listing

_ISO = re.compile(r"(?a)\b(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?\b")
_NAMED = re.compile(r"(?a)\b(\d\d)-([A-Z][a-z]{2})-(\d{4}) (\d\d):(\d\d)(?::(\d\d))?\b")
_YEAR_NAMED = re.compile(r"(?a)\b(\d{4})-([A-Z][a-z]{2})-(\d\d) (\d\d):(\d\d)(?::(\d\d))?\b")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_SIZE = re.compile(r"([0-9]{1,18})(?=\s|$)")
_SIZE_MAX = 1 << 63
_TEXT_CHARS = 1000  # of a title, or beside a link, that are looked at


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of a listing."""

    name: bytes
    directory: bool
    size: int | None  # bytes; None: not shown, or rounded
    mtime_ns: int | None  # of HTML: to the minute, and in the server's time zone


class ListingParser(Protocol):
    """Takes a page as it arrives."""

    def feed(self, data: bytes) -> list[Link]:
        """The entries that are complete now. Raises Unsupported for what is no listing."""

    def finish(self) -> list[Link]:
        """The last ones. Raises Garbled where the end is missing."""


def listing_parser(content_type: str, url: str) -> ListingParser:
    """A parser for a page at `url`. Raises Unsupported for what cannot be a listing."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return JsonListing(url)
    if kind in {"text/html", "application/xhtml+xml"}:
        return HtmlListing(url)
    raise Unsupported(f"{url}: not a directory: {kind or 'nothing'} came instead of a listing")


def child(href: str, directory_url: str) -> tuple[bytes, bool] | None:
    """The name that `href` on the page of a directory leads to, and whether it is a directory.

    None where it is no direct child.
    """
    try:
        link, base = urlsplit(href), urlsplit(directory_url)
    except ValueError:  # brackets that are no address
        return None
    if link.scheme and link.scheme != base.scheme:
        return None
    if (link.scheme or link.netloc) and link.netloc != base.netloc:
        return None
    if "?" in href or "#" in href:
        return None
    path = link.path
    if path.startswith("/") or link.netloc:
        parts = [unquote_to_bytes(_bytes(part)) for part in path.split("/")]
        above = [unquote_to_bytes(_bytes(part)) for part in base.path.split("/")[:-1]]
        if parts[: len(above)] != above:
            return None
        parts = parts[len(above) :]
    else:
        path = path.removeprefix("./")  # how Apache hides a colon
        parts = [unquote_to_bytes(_bytes(part)) for part in path.split("/")]
    directory = len(parts) == 2 and parts[1] == b""
    if not (len(parts) == 1 or directory):
        return None
    name = parts[0]
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        return None
    return name, directory


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def shown_time_ns(text: str) -> int | None:
    """The time that the text beside a link shows, taken as UTC."""
    if match := _ISO.search(text):
        year, month, day, hour, minute, second = match.groups()
        number = int(month)
    elif match := _NAMED.search(text):
        day, name, year, hour, minute, second = match.groups()
        number = _month(name)
    elif match := _YEAR_NAMED.search(text):
        year, name, day, hour, minute, second = match.groups()
        number = _month(name)
    else:
        return None
    try:
        shown = datetime(
            int(year), number, int(day), int(hour), int(minute), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        return None
    return int(shown.timestamp()) * 10**9


def _month(name: str) -> int:
    return _MONTHS.index(name) + 1 if name in _MONTHS else 0


def shown_size(text: str) -> int | None:
    """The bytes that the text beside a link shows; None where they are rounded (1.2K) or absent."""
    for pattern in (_ISO, _NAMED, _YEAR_NAMED):
        if match := pattern.search(text):
            text = text[match.end() :]
            break
    else:
        return None  # a number alone may be anything
    found = _SIZE.match(text.lstrip())
    return int(found[1]) if found else None


class HtmlListing(HTMLParser):
    """A page of links, each with what is shown beside it up to the next link or row."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self._url = url
        self._title = ""
        self._in_title = False
        self._in_link = False
        self._href: str | None = None  # of the entry that is being collected
        self._beside = ""
        self._links: list[Link] = []
        self._ended = False
        self._rest = b""  # of a character that is cut

    def feed(self, data: bytes) -> list[Link]:  # type: ignore[override]  # bytes, and an answer
        """See ListingParser."""
        data = self._rest + data
        cut = _whole_characters(data)
        self._rest = data[cut:]
        super().feed(data[:cut].decode("utf-8", "surrogateescape"))
        if len(self.rawdata) > _HELD_CHARS_MAX:
            raise Unsupported(f"{self._url}: not a directory: the page is no listing")
        return self._take()

    def finish(self) -> list[Link]:
        """See ListingParser."""
        super().feed(self._rest.decode("utf-8", "surrogateescape"))
        self.close()
        self._flush()
        self._check_title()
        if not self._ended:
            raise Garbled(f"{self._url}: the listing is cut off")
        return self._take()

    def _take(self) -> list[Link]:
        links, self._links = self._links, []
        return links

    def _check_title(self) -> None:
        if not self._title.strip().lower().startswith(_TITLES):
            raise Unsupported(
                f"{self._url}: the server shows a page of its own instead of a listing"
            )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        if tag == "title":
            self._in_title = True
        elif tag == "a":
            self._check_title()  # before the first entry goes out
            self._in_link = True
            href = dict(attrs).get("href")
            if href != self._href:  # an icon may be linked too
                self._flush()
                self._href = href
        elif tag == "tr":
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if tag == "title":
            self._in_title = False
        elif tag == "a":
            self._in_link = False
        elif tag == "td":
            self._beside += " "
        elif tag in {"body", "html"}:
            self._flush()
            self._ended = True

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self._in_title:
            self._title = (self._title + data)[:_TEXT_CHARS]
        elif self._href is not None and not self._in_link:
            self._beside = (self._beside + data)[:_TEXT_CHARS]

    def _flush(self) -> None:
        href, self._href = self._href, None
        text, self._beside = self._beside, ""
        found = child(href, self._url) if href is not None else None
        if found is not None:
            name, directory = found
            size = None if directory else shown_size(text)
            self._links.append(Link(name, directory, size, shown_time_ns(text)))


def _whole_characters(data: bytes) -> int:
    """How much of `data` ends with a whole UTF-8 character."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            needs = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needs > back else len(data)
    return len(data)


class JsonListing:
    """nginx's `autoindex_format json`: an array of name, type, mtime and size."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._rest = b""
        self._begun = False
        self._ended = False

    def feed(self, data: bytes) -> list[Link]:
        """See ListingParser."""
        data = self._rest + data
        cut = _whole_characters(data)
        self._rest = data[cut:]
        self._text += data[:cut].decode("utf-8", "surrogateescape")
        links = list(self._parse())
        if len(self._text) > _HELD_CHARS_MAX:
            raise self._no_listing()
        return links

    def finish(self) -> list[Link]:
        """See ListingParser."""
        if not self._ended:
            raise Garbled(f"{self._url}: the listing is cut off")
        return []

    def _parse(self) -> Iterator[Link]:
        at = 0
        try:
            while True:
                while at < len(self._text) and self._text[at] in " \t\r\n,":
                    at += 1
                if at == len(self._text):
                    return
                if not self._begun:
                    if self._text[at] != "[":
                        raise self._no_listing()
                    self._begun = True
                    at += 1
                elif self._text[at] == "]":
                    self._ended = True
                    at += 1
                else:
                    try:
                        value, end = self._decoder.raw_decode(self._text, at)
                    except json.JSONDecodeError:
                        return  # the rest of it is still to come
                    except (ValueError, RecursionError):  # numbers or nesting beyond all measure
                        raise self._no_listing() from None
                    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                        raise self._no_listing()
                    at = end
                    link = _json_link(value)
                    if link is not None:
                        yield link
        finally:
            self._text = self._text[at:]

    def _no_listing(self) -> Unsupported:
        return Unsupported(f"{self._url}: not a directory: the JSON that came is no listing")


def _json_link(value: dict[str, object]) -> Link | None:
    try:
        name = _bytes(str(value["name"]))
    except UnicodeEncodeError:  # an escaped half of a surrogate pair
        return None
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        return None
    size = value.get("size")
    return Link(
        name,
        value.get("type") == "directory",
        size if type(size) is int and 0 <= size < _SIZE_MAX else None,
        http_time_ns(value.get("mtime")),
    )


def http_time_ns(text: object) -> int | None:
    """A time as HTTP spells it, `Sun, 06 Nov 1994 08:49:37 GMT`; None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 10**9
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
