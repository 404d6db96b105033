"""Classes of files, by name, by first bytes, by the config."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.filter_patterns import FilterError
from syncer.semantic import HEAD_BYTES, Classes, SemanticClass, Strategy, classify

CRITICAL, HIGH, NORMAL, LOW = SemanticClass


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((name, CRITICAL) for name in (
            "a/app.toml", "x.json", "x.YAML", "b.yml", "c.ini", "d.conf", "poetry.lock", ".env",
            "prod.env", ".env.local", "Dockerfile", "a/Dockerfile.dev", "Makefile", "src/go.mod",
        )),
        *((name, HIGH) for name in (
            "pg_wal/000000010000000000000001", "data/pg_xlog/a/b", "wal/0001", "x/binlog/mysql.1",
            "store.wal", "chunks.db-wal",
        )),
        *((name, LOW) for name in (
            "film.MKV", "a/b.mp3", "photo.jpeg", "disk.qcow2", "x.iso", "all.tar.gz", "b.zst",
        )),
        *((name, NORMAL) for name in (
            "main.c", "README", "wal", "notes.txt", "a.ts", ".zip", "jpg", "walnut/x", "toml",
        )),
        # The first that matches wins.
        ("pg_wal/archive.conf", CRITICAL),
        ("pg_wal/film.mkv", HIGH),
    ],
)  # fmt: skip
def test_names(path: str, expected: SemanticClass) -> None:
    assert classify(path.encode()) is expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", LOW),
        (b"\xff\xd8\xff\xe0", LOW),
        (b"\0\0\0\x20ftypisom", LOW),
        (b"RIFF\x10\0\0\0WAVEfmt ", LOW),
        (b"PK\x03\x04", LOW),
        (b"\x28\xb5\x2f\xfd....", LOW),
        (bytes(257) + b"ustar\0", LOW),
        (bytes(64) + b"\x7f\x10\xda\xbe", LOW),
        (b"QFI\xfb\0\0\0\3", LOW),
        (b"\x37\x7f\x06\x82....", HIGH),
        (b"\xfebin....", HIGH),
        (b"plain text", NORMAL),
        (b"", NORMAL),
        (b"PK", NORMAL),
    ],
)
def test_first_bytes_count_where_the_name_says_nothing(
    head: bytes, expected: SemanticClass
) -> None:
    assert classify(b"something", head) is expected
    assert classify(b"something.conf", head) is CRITICAL
    assert classify(b"something.zip", head) is LOW


@settings(deadline=None)
@given(st.binary(max_size=40), st.none() | st.binary(max_size=HEAD_BYTES))
def test_every_file_has_a_class(path: bytes, head: bytes | None) -> None:
    found = classify(path, head)
    assert found in SemanticClass
    # Folders whose names say nothing change nothing.
    assert classify(b"deep/down/" + path, head) is found


def test_ranks_and_strategies() -> None:
    assert sorted(SemanticClass, key=lambda one: one.rank) == [CRITICAL, HIGH, NORMAL, LOW]
    assert CRITICAL.strategy is Strategy.REPLACE
    assert HIGH.strategy is Strategy.APPEND
    assert NORMAL.strategy is Strategy.CHUNKS
    assert LOW.strategy is Strategy.CHUNKS


def test_the_config_goes_first() -> None:
    classes = Classes([("*.mkv", "critical"), ("/db/**", "HIGH"), ("*.conf", "low")])
    assert classes.classify(b"a/film.mkv") is CRITICAL
    assert classes.classify(b"db/film.mkv") is CRITICAL
    assert classes.classify(b"db/x.toml") is HIGH
    assert classes.classify(b"a/x.conf") is LOW
    assert classes.classify(b"a/x.toml") is CRITICAL
    assert classes.classify(os.fsencode("a/\udcff"), b"PK\x03\x04") is LOW
    assert Classes().classify(b"x.toml") is CRITICAL


@pytest.mark.parametrize(
    ("override", "said"),
    [(("*.x", "urgent"), "no class"), (("x/", "low"), "take the last /"), (("[", "low"), "closed")],
)
def test_config_that_makes_no_sense_is_refused(override: tuple[str, str], said: str) -> None:
    with pytest.raises(FilterError, match=said):
        Classes([override])
