"""The credentials file: who may read it, which section wins, and that nothing of it is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.remotes.credentials import Credentials, Login, default_path
from syncer.remotes.errors import Denied
from syncer.remotes.url import RemoteUrl

SECRET = "hunter2-é"

FILE = f"""
["nas"]
user = "guest"

["smb://nas"]
user = "any"

["smb://nas/media"]
user = "anna"
password = "{SECRET}"

["smb://nas/media/films/new"]
user = "deeper"

["smb://bob@nas/media"]
user = "bob"

["nas:4450"]
user = "other port"

["sftp://nas:22"]
user = "default port"

["https://web/private dir"]
user = "with a space"

["fsspec+zip://::file:///a.zip"]
user = "chained"
"""


def write(path: Path, text: str, mode: int = 0o600) -> Credentials:
    path.write_text(text)
    path.chmod(mode)
    return Credentials(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "credentials.toml"


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("smb://nas/media", "anna"),
        ("smb://nas/media/", "anna"),
        ("smb://anna@NAS/media/films", "anna"),
        ("smb://nas/media/films/new/x", "deeper"),
        ("smb://nas/media/films/newer", "anna"),
        ("smb://nas/mediathek", "any"),
        ("smb://nas", "any"),
        ("smb://nas:445/media", "anna"),
        ("smb://bob@nas/media/x", "bob"),
        ("smb://nas:4450/other", "other port"),
        ("sftp://nas/media", "default port"),
        ("sftp://nas:2222/media", "guest"),
        ("https://web/private%20dir/x", "with a space"),
        ("http://web/private%20dir/x", None),  # not over a line that everybody reads
        ("https://web/private", None),
        ("https://nas.example.com/", None),
        ("fsspec+zip://::file:///a.zip", "chained"),
    ],
)
def test_the_longest_prefix_that_fits_wins(file: Path, url: str, user: str | None) -> None:
    credentials = write(file, FILE)
    assert credentials.find(RemoteUrl.parse(url)).get("user") == user


def test_a_section_is_taken_whole(file: Path) -> None:
    credentials = write(file, FILE)
    assert dict(credentials.find(RemoteUrl.parse("smb://nas/media"))) == {
        "user": "anna",
        "password": SECRET,
    }
    assert dict(credentials.find(RemoteUrl.parse("smb://nas/media/films/new"))) == {
        "user": "deeper"
    }


names = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)


@given(sections=st.sets(names.map(tuple), min_size=1), path=names)
def test_longest_for_any_sections(
    tmp_path_factory: pytest.TempPathFactory, sections: set[tuple[str, ...]], path: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    text = "".join(f'["sftp://h/{"/".join(s)}"]\nuser = "{"/".join(s)}"\n' for s in sections)
    found = write(file, text).find(RemoteUrl.parse("sftp://h/" + "/".join(path)))
    fitting = [section for section in sections if tuple(path[: len(section)]) == section]
    expected = "/".join(max(fitting, key=len)) if fitting else None
    assert found.get("user") == expected


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601, 0o660])
def test_a_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    credentials = write(file, FILE, mode)
    with pytest.raises(Denied, match=rf"{mode:04o}.*chmod 600 {file}"):
        credentials.find(RemoteUrl.parse("smb://nas/media"))
    file.chmod(0o400)
    assert credentials.find(RemoteUrl.parse("smb://nas/media"))["user"] == "anna"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    credentials = write(file, FILE)
    os.chown(file, 65534, -1)
    with pytest.raises(Denied, match="another user"):
        credentials.find(RemoteUrl.parse("smb://nas/media"))


@pytest.mark.parametrize(
    "text",
    [
        f'["nas"]\npassword = {SECRET}',
        f'["nas"]\npassword = "{SECRET}',
        f'["nas"]\npassword = ["{SECRET}"]',
        f'["nas"]\n"{SECRET}" = 5',
        f'[nas.example]\npassword = "{SECRET}"',
        f'password = "{SECRET}"',
        f'["smb://anna:{SECRET}@nas"]\nuser = "x"',
        f'["smb://nas:port"]\npassword = "{SECRET}"',
        f'["nas"]\na = 1\na = "{SECRET}"',
    ],
)
def test_what_makes_no_sense_is_refused_without_quoting_a_value(file: Path, text: str) -> None:
    credentials = write(file, text)
    with pytest.raises(Denied, match=str(file)) as caught:
        credentials.find(RemoteUrl.parse("smb://nas/"))
    if f'"{SECRET}" =' not in text:  # there it is a name
        assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    file.write_bytes(b"\xff")
    with pytest.raises(Denied, match="UTF-8"):
        credentials.check()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, tmp_path):
        with pytest.raises(Denied, match=str(path)):
            Credentials(path).check()  # at once, though nobody writes into the fifo


def test_a_missing_file_is_an_error_only_if_it_was_asked_for(tmp_path: Path) -> None:
    url = RemoteUrl.parse("smb://nas/")
    assert dict(Credentials().find(url)) == {}
    assert dict(Credentials(tmp_path / "none").find(url)) == {}
    with pytest.raises(Denied, match="none"):
        Credentials(tmp_path / "none", required=True).find(url)
    assert default_path(tmp_path) == tmp_path / ".config/orbit/credentials.toml"


def test_a_changed_file_is_read_again(file: Path) -> None:
    url = RemoteUrl.parse("smb://nas/")
    credentials = write(file, '["nas"]\npassword = "old"')
    assert credentials.find(url)["password"] == "old"
    write(file.with_name("new"), '["nas"]\npassword = "new"')
    file.with_name("new").rename(file)
    assert credentials.find(url)["password"] == "new"
    file.write_text("nonsense")
    with pytest.raises(Denied):
        credentials.find(url)
    file.unlink()
    assert dict(credentials.find(url)) == {}


def test_values_are_shown_nowhere(file: Path) -> None:
    credentials = write(file, FILE)
    login = credentials.find(RemoteUrl.parse("smb://nas/media"))
    assert login["password"] == SECRET
    for shown in (repr(login), str(login), f"{login}", repr(credentials), repr([login])):
        assert SECRET not in shown
        assert "anna" not in shown
    assert repr(login) == "Login('smb://nas/media': password, user)"
    assert Login({}) == {}
