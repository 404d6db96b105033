"""Names from a remote: total, safe, unique, the same in every listing, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ghostd.remote_names import MARKER, NAME_BYTES_MAX, RemoteName, local_name, remote_name

# Names as they come, and such as are close to every border of the rules.
fragments = st.sampled_from(
    [b"", b".", b"..", b"/", b"\0", b"%", b"%2F", b"%2f", b"%25", b"%~", b"a", b"A", b"\xff",
     "ä€𝄞".encode(), b"\n", MARKER, MARKER[:-1], b"x" * 200, b"y" * 255, b"%" * 80, b"z" * 1024]
)  # fmt: skip
names = st.one_of(
    st.binary(max_size=1024), st.lists(fragments, max_size=6).map(b"".join), fragments
)
entries = st.tuples(names, st.booleans())


def show(listed: list[tuple[bytes, bool]]) -> dict[tuple[bytes, bool], bytes]:
    """The names given to the entries of one directory, listed in this order."""
    taken: set[bytes] = set()
    shown = {}
    for name, is_dir in listed:
        local = local_name(name, is_dir, taken)
        assert local is not None
        taken.add(local)
        shown[name, is_dir] = local
    return shown


@given(names, st.booleans())
def test_every_name_is_shown_under_a_safe_one(name: bytes, is_dir: bool) -> None:
    for taken in (set[bytes](), {name}):
        local = local_name(name, is_dir, taken)
        assert local is not None
        assert 1 <= len(local) <= NAME_BYTES_MAX
        assert b"/" not in local
        assert b"\0" not in local
        assert local not in {b".", b".."}
        assert local not in taken


@given(names, st.booleans())
def test_what_can_stand_in_a_directory_is_shown_as_it_is(name: bytes, is_dir: bool) -> None:
    # Said in other words than the code's: what Linux takes as a name, less what looks like ours.
    assume(0 < len(name) < 256 and not set(b"/\0") & set(name))
    assume(name.strip(b".") or len(name) > 2)
    assume(name[: len(MARKER)] != MARKER)
    assert local_name(name, is_dir, set()) == name
    assert remote_name(name) == RemoteName(name, is_dir=None)


@given(st.lists(entries, unique=True, max_size=20))
@example([(b"a", False), (b"a", True), (MARKER + b"a", False), (MARKER + b"a%2F", False)])
@example([(b"", False), (b"", True), (b"/", False), (b"/", True), (MARKER, True)])
@example([(b"n" * 255, False), (b"n" * 255, True), (b"n" * 256, False), (b"n" * 256, True)])
@example([(b"x/", False), (b"x", False), (b"x", True), (b"x//", True), (b"x/", True)])
def test_no_two_entries_share_a_name(listed: list[tuple[bytes, bool]]) -> None:
    shown = show(listed)
    assert len(set(shown.values())) == len(listed)


@given(names, st.booleans(), st.booleans())
def test_what_is_not_shortened_maps_back(name: bytes, is_dir: bool, second: bool) -> None:
    local = local_name(name, is_dir, {name} if second else set())
    assert local is not None
    back = remote_name(local)
    if back is None:
        assert b"%~" in local
        # Only what cannot be spelled in 255 bytes, or breaks the protocol (a file called "x/").
        spelled = len(MARKER) + len(name) + 2 * sum(name.count(c) for c in b"%/\0") + 3 * is_dir
        assert spelled > NAME_BYTES_MAX or (name.endswith(b"/") and not is_dir)
    else:
        assert back.name == name
        assert back.is_dir in {None, is_dir}
        assert (back.is_dir is None) == (local == name)


@given(names)
@example(MARKER + b"a/b")
def test_the_way_back_says_nothing_wrong(local: bytes) -> None:
    back = remote_name(local)
    if back is not None:
        # Shown so as the only entry, or as the second comer beside one of that name.
        is_dir = bool(back.is_dir)
        assert local in {local_name(back.name, is_dir, taken) for taken in ([], [back.name])}


@given(st.lists(entries, unique=True, max_size=12).flatmap(
    lambda listed: st.tuples(st.just(listed), st.permutations(listed))
))  # fmt: skip
def test_the_order_of_a_listing_changes_nothing_but_who_of_a_pair_comes_first(
    listings: tuple[list[tuple[bytes, bool]], list[tuple[bytes, bool]]],
) -> None:
    one, other = listings
    paired = {name for name, is_dir in one if (name, not is_dir) in one}
    first, second = show(one), show(other)
    for entry in one:
        if entry[0] not in paired:
            assert first[entry] == second[entry]
    # Files before directories: no difference at all.
    assert show(sorted(one, key=lambda entry: entry[1])) == show(
        sorted(other, key=lambda entry: entry[1])
    )


@pytest.mark.parametrize("first_is_dir", [False, True])
def test_a_file_and_a_directory_of_one_name(first_is_dir: bool) -> None:
    shown = show([(b"a", first_is_dir), (b"a", not first_is_dir)])
    assert shown[b"a", first_is_dir] == b"a"
    assert remote_name(shown[b"a", not first_is_dir]) == RemoteName(b"a", not first_is_dir)


@given(names, st.booleans())
def test_an_entry_listed_twice_is_left_out(name: bytes, is_dir: bool) -> None:
    taken = set[bytes]()
    shown = [local_name(name, is_dir, taken)]
    taken.update(filter(None, shown))
    again = local_name(name, is_dir, taken)
    if again is not None:  # it can still pass for the second of a pair
        assert shown == [name]
        taken.add(again)
        assert local_name(name, is_dir, taken) is None


def test_names_stay_the_same_from_one_release_to_the_next() -> None:
    """The namespace remembers them: changing one would rename people's files."""
    assert local_name(b"", True, ()) == b"@orbit:%2F"
    assert local_name(b"..", False, ()) == b"@orbit:.."
    assert local_name(b"50%/\0", False, ()) == b"@orbit:50%25%2F%00"
    assert local_name(b"@orbit:x", False, ()) == b"@orbit:@orbit:x"
    # A head is cut between characters.
    long = MARKER + "ü".encode() * 106 + b"%~91755fe21c7801f48f12c7d479060415"
    assert local_name("ü".encode() * 512, True, ()) == long
