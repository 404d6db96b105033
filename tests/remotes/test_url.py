"""URLs: what they are taken apart into, and what is refused without repeating it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.errors import BadUrl
from syncer.remotes.url import RemoteUrl, check_options, is_secret_name


@pytest.mark.parametrize(
    ("text", "user", "host", "port", "path", "query", "origin"),
    [
        ("sftp://u@Host:2222/a%20b/%zz", "u", "host", 2222, b"/a b/%zz", "", "sftp://host:2222"),
        ("SMB://nas/media", None, "nas", None, b"/media", "", "smb://nas:445"),
        ("smb://do%40main@nas/x", "do@main", "nas", None, b"/x", "", "smb://nas:445"),
        ("file:///x/y#z?w", None, "", None, b"/x/y#z?w", "", "file://"),
        ("file:///caf%C3%A9/\udce9", None, "", None, b"/caf\xc3\xa9/\xe9", "", "file://"),
        ("s3://Bucket", None, "Bucket", None, b"", "", "s3://Bucket"),
        ("az://$root/x@y:z", None, "$root", None, b"/x@y:z", "", "az://$root"),
        ("http://H/a%3Fb?c=d&e", None, "h", None, b"/a?b", "c=d&e", "http://h:80"),
        ("https://[2001:DB8::1]:8443/", None, "2001:db8::1", 8443, b"/", "", "https://[2001:db8::1]:8443"),
        ("fsspec+zip://x/y::file:///a.zip", None, "", None, b"x/y::file:///a.zip", "", "fsspec+zip://"),
        ("fsspec+memory:///x", None, "", None, b"/x", "", "fsspec+memory://"),
    ],
)  # fmt: skip
def test_parts(
    text: str, user: str | None, host: str, port: int | None, path: bytes, query: str, origin: str
) -> None:
    url = RemoteUrl.parse(text)
    assert (url.user, url.host, url.port, url.path, url.query) == (user, host, port, path, query)
    assert url.origin == origin
    assert str(url) == text


@pytest.mark.parametrize(
    "text",
    [
        "sftp://anna:hunter2@nas/x",
        "sftp://anna:hunt@er2@nas/x",
        "sftp://anna:hunter2/@nas/x",
        "sftp://:hunter2@nas",
        "smb://dom;anna:hunter2@nas/x",
        "anna:hunter2@nas/x",
        "sftp:anna:hunter2@nas",
        "http://anna:hunter2@[::1]/",
        "https://h/x?X-Amz-Signature=hunter2",
        "https://h/x?a=b&sig=hunter2",
        "https://h/x?access_token=hunter2#y",
        "fsspec+ftp://anna:hunter2@nas/x",
        "fsspec+zip://x::ftp://anna:hunter2@nas/y.zip",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadUrl) as caught:
        RemoteUrl.parse(text)
    assert "hunter2" not in str(caught.value)
    assert "er2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "/x", "file:/x", "://h/x", "sftp:///\0", "sftp://h:0/", "sftp://h:65536/", "sftp://h:/",
        "sftp://h:x/", "sftp://-oProxyCommand=x/", "sftp://-x@h/", "sftp://@h/", "sftp://a b/",
        "sftp://h\n/", "sftp://a\\b/", "sftp://[::1/", "sftp://%0a@h/", "http://h/#x",
    ],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadUrl):
        RemoteUrl.parse(text)


@given(st.text())
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for candidate in (text, f"sftp://{text}", f"http://{text}", f"fsspec+x://{text}"):
        try:
            url = RemoteUrl.parse(candidate)
        except BadUrl:
            continue
        assert not url.host.startswith("-")
        assert url.scheme == url.scheme.lower()
        assert "\0" not in url.host


@given(st.binary().filter(lambda path: b"\0" not in path))
def test_a_path_that_is_quoted_comes_back(path: bytes) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in path)
    assert RemoteUrl.parse(f"sftp://h/{quoted}").path == b"/" + path


def test_options() -> None:
    url = RemoteUrl.parse("s3://b/x")
    check_options(url, {"region": "eu", "access_key_file": "x"}, {"region", "access_key_file"})
    with pytest.raises(
        BadUrl, match=r"s3://b/x: unknown option 'regoin'; s3 knows: endpoint, region"
    ):
        check_options(url, {"regoin": "eu"}, {"region", "endpoint"})
    with pytest.raises(BadUrl, match=r"'secret_key' is a secret.*credentials file") as caught:
        check_options(url, {"secret_key": "hunter2"}, {"region"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("password", True), ("passwd", True), ("secret_access_key", True), ("session-token", True),
        ("account_key", True), ("sig", True), ("X-Amz-Signature", True), ("apikey", True),
        ("region", False), ("endpoint", False), ("design", False), ("passive", False),
        ("key", False),
    ],
)  # fmt: skip
def test_secret_names(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret
