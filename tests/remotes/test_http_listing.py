"""Listings of web servers: what pages say, and what pages must not be able to say."""

# ruff: noqa: E501 - pages are as servers write them

from __future__ import annotations

import html
import json
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.errors import Garbled, RemoteError, Unsupported
from syncer.remotes.http_listing import (
    HtmlListing,
    JsonListing,
    Link,
    child,
    listing_parser,
    shown_size,
    shown_time_ns,
)

URL = "http://host:8080/base/dir/"
MINUTE_NS = 1706695200 * 10**9  # 2024-01-31 10:00 UTC

names = st.binary(min_size=1, max_size=40).filter(
    lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name
)


def parse(page: bytes, parts: int = 7, parser=None) -> list[Link]:
    """The entries of a page that arrives in pieces."""
    parser = parser or HtmlListing(URL)
    links = []
    for start in range(0, len(page), parts):
        links += parser.feed(page[start : start + parts])
    return links + parser.finish()


# Apache's documented forms: IndexOptions FancyIndexing, with and without HTMLTable; written by
# hand after mod_autoindex's documentation and source comments.

APACHE_TABLE = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html>
 <head>
  <title>Index of /base/dir</title>
 </head>
 <body>
<h1>Index of /base/dir</h1>
  <table>
   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th>
   <th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>
   <th><a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>
   <tr><th colspan="5"><hr></th></tr>
<tr><td valign="top"><img src="/icons/back.gif" alt="[PARENTDIR]"></td><td><a href="/base/">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td><td>&nbsp;</td></tr>
<tr><td valign="top"><a href="sub/"><img src="/icons/folder.gif" alt="[DIR]"></a></td><td><a href="sub/">sub/</a></td><td align="right">2024-01-31 10:00  </td><td align="right">  - </td><td>&nbsp;</td></tr>
<tr><td valign="top"><a href="a%20%26%20b.txt"><img src="/icons/text.gif" alt="[TXT]"></a></td><td><a href="a%20%26%20b.txt">a &amp; b.txt</a></td><td align="right">2024-01-31 10:00  </td><td align="right">973 </td><td>&nbsp;</td></tr>
<tr><td valign="top"><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="./odd:name">odd:name</a></td><td align="right">2024-01-31 10:00  </td><td align="right">1.2K</td><td>&nbsp;</td></tr>
   <tr><th colspan="5"><hr></th></tr>
</table>
<address>Apache/2.4.57 (Debian) Server at host Port 8080</address>
</body></html>
"""

APACHE_PRE = b"""<html>
 <head>
  <title>Index of /base/dir</title>
 </head>
 <body>
<h1>Index of /base/dir</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a>                    <a href="?C=M;O=A">Last modified</a>      <a href="?C=S;O=A">Size</a>  <hr><img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/base/">Parent Directory</a>                             -
<img src="/icons/folder.gif" alt="[DIR]"> <a href="sub/">sub/</a>                    2024-01-31 10:00    -
<img src="/icons/text.gif" alt="[TXT]"> <a href="a%20%26%20b.txt">a &amp; b.txt</a>               2024-01-31 10:00  973
<img src="/icons/unknown.gif" alt="[   ]"> <a href="./odd:name">odd:name</a>               31-Jan-2024 10:00  1.2K
<hr></pre>
<address>Apache/2.4.57 (Debian) Server at host Port 8080</address>
</body></html>
"""


@pytest.mark.parametrize("page", [APACHE_TABLE, APACHE_PRE], ids=["table", "pre"])
@pytest.mark.parametrize("parts", [1, 5, 1000, 100_000])
def test_apache(page: bytes, parts: int):
    assert parse(page, parts) == [
        Link(b"sub", directory=True, size=None, mtime_ns=MINUTE_NS),
        Link(b"a & b.txt", directory=False, size=973, mtime_ns=MINUTE_NS),
        Link(b"odd:name", directory=False, size=None, mtime_ns=MINUTE_NS),
    ]


def test_lighttpd():
    page = b"""<html><head><title>Index of /base/dir/</title></head><body><table>
<tr class="d"><td class="n"><a href="../">..</a>/</td><td class="m">&nbsp;</td></tr>
<tr><td class="n"><a href="f">f</a></td><td class="m">2024-Jan-31 10:00:00</td>
<td class="s">0.1K</td><td class="t">text/plain</td></tr></table></body></html>"""
    assert parse(page) == [Link(b"f", directory=False, size=None, mtime_ns=MINUTE_NS)]


def page_of(hrefs: list[str], title: str = "Index of /base/dir/") -> bytes:
    """A page like nginx's."""
    lines = [f'<a href="{html.escape(href)}">x</a>   31-Jan-2024 10:00   12' for href in hrefs]
    text = f"<html><head><title>{title}</title></head><body><pre>\n" + "\n".join(lines)
    return (text + "\n</pre></body></html>").encode("utf-8", "surrogateescape")


@given(st.lists(names, unique=True, max_size=8), st.booleans(), st.integers(1, 50))
def test_any_name_comes_back(listed: list[bytes], directory: bool, parts: int):
    slash = "/" if directory else ""
    page = page_of([quote_from_bytes(name, safe="") + slash for name in listed])
    links = parse(page, parts)
    assert [link.name for link in links] == listed
    assert {link.directory for link in links} <= {directory}
    assert {link.size for link in links} <= {None if directory else 12}


@given(names)
def test_absolute_links_to_children(name: bytes):
    quoted = quote_from_bytes(name, safe="")
    for href in (f"/base/dir/{quoted}", f"http://host:8080/base/dir/{quoted}", f"./{quoted}"):
        assert child(href, URL) == (name, False)
    assert child(f"/base/dir/{quoted}/", URL) == (name, True)


@pytest.mark.parametrize(
    "href",
    [
        "",
        "/",
        ".",
        "./",
        "..",
        "../",
        "../x",
        "%2e%2e",
        "%2E%2E/",
        "..%2f..%2fetc",
        "a%2Fb",
        "a/b",
        "a//",
        "//other/base/dir/x",
        "//host/base/dir/x",
        "http://other:8080/base/dir/x",
        "https://host:8080/base/dir/x",
        "http://user@host:8080/base/dir/x",
        "ftp://host:8080/base/dir/x",
        "javascript:alert(1)",
        "mailto:a@b",
        "file:///etc/passwd",
        "?C=N;O=D",
        "x?C=N",
        "#top",
        "x#top",
        "/base/",
        "/base/dir/",
        "/base/dir/../x",
        "/base/dir/%2e%2e",
        "/base/dirx",
        "/base/other/x",
        "a%00b",
        "http://[broken/x",
    ],
)
def test_what_is_no_child(href: str):
    assert child(href, URL) is None
    assert parse(page_of([href])) == []


@given(st.text(max_size=60))
def test_no_link_leads_out(href: str):
    found = child(href, URL)
    if found is not None:
        name, _ = found
        assert name not in {b"", b".", b".."}
        assert b"/" not in name
        assert b"\0" not in name


@given(st.binary(max_size=300), st.integers(1, 64))
def test_any_bytes_are_an_error_or_children(page: bytes, parts: int):
    for parser in (HtmlListing(URL), JsonListing(URL)):
        try:
            links = parse(page, parts, parser)
        except RemoteError:
            continue
        assert all(link.name not in {b"", b".", b".."} for link in links)


@given(
    st.lists(
        st.tuples(names, st.sampled_from(["file", "directory", "other"]), st.integers(0, 2**62)),
        max_size=6,
    ),
    st.integers(1, 80),
)
def test_json(entries: list[tuple[bytes, str, int]], parts: int):
    values = [
        {
            "name": name.decode("utf-8", "surrogateescape"),
            "type": kind,
            "mtime": "Wed, 31 Jan 2024 10:00:00 GMT",
            **({"size": size} if kind == "file" else {}),
        }
        for name, kind, size in entries
    ]
    # As nginx does: bytes that are no UTF-8 as they are.
    text = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
    assert parse(text, parts, JsonListing(URL)) == [
        Link(name, kind == "directory", size if kind == "file" else None, MINUTE_NS)
        for name, kind, size in entries
    ]


@pytest.mark.parametrize(
    "text",
    [b"{}", b"3", b"[3]", b'[{"title": "x"}]', b'{"name": "x"}', b"[" * 5000, b"[" + b"9" * 5000],
)
def test_other_json_is_no_listing(text: bytes):
    with pytest.raises(Unsupported):
        parse(text, 10_000, JsonListing(URL))


@pytest.mark.parametrize("cut", range(10, 200, 13))
def test_a_cut_listing_is_noticed(cut: int):
    with pytest.raises((Garbled, Unsupported)):
        parse(page_of(["a", "b", "c"])[:-cut])
    whole = b'[{"name":"a","type":"file","size":1}, {"name":"b","type":"directory"}]'
    with pytest.raises(Garbled):
        parse(whole[: -max(1, cut // 13)], 10, JsonListing(URL))


def test_a_page_that_is_no_listing():
    with pytest.raises(Unsupported):
        parse(page_of(["a", "b"], title="Welcome to our shop"))
    for kind in ("text/plain", "application/octet-stream", ""):
        with pytest.raises(Unsupported):
            listing_parser(kind, URL)


@pytest.mark.parametrize(
    ("text", "size", "time_ns"),
    [
        ("   22-Nov-2026 23:16      5000\n", 5000, 1795389360 * 10**9),
        ("   22-Nov-2026 23:16       10K\n", None, 1795389360 * 10**9),
        ("   2026-11-22 23:16  1.2M", None, 1795389360 * 10**9),
        ("   2026-11-22 23:16    - ", None, 1795389360 * 10**9),
        ("   2026-13-42 23:16   5 ", 5, None),
        ("   5000  ", None, None),
        ("  22-Foo-2026 23:16  7", 7, None),
        ("", None, None),
    ],
)
def test_what_is_shown(text: str, size: int | None, time_ns: int | None):
    assert (shown_size(text), shown_time_ns(text)) == (size, time_ns)
