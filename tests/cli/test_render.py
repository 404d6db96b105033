"""Numbers and names as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.render import check, duration, plain, size
from tests.api.double import DAMAGED


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 * 2**20, "64 MiB"),
        (3 * 2**60, "3072 PiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0204, "20 ms"),
        (1.5, "1.5 s"),
        (42, "42 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7200, "2 h"),
        (200_000, "2 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e12))
def test_every_duration_has_words(seconds):
    assert duration(seconds)


@given(st.text())
def test_nothing_reaches_the_terminal_as_a_command(text):
    assert all(each.isprintable() for each in plain(text))


def test_damaged_names_are_made_harmless():
    report = {
        "checks": [],
        "damaged_files": ["/a/\x1b[31mred\n"],
        "ok": False,
        "data": True,
        "seconds": DAMAGED.seconds,
    }
    assert "/a/\\x1b[31mred\\n" in check(report)
