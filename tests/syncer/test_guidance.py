"""Each rule, where it applies and where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.guidance import RULES, Advice, Refused, Severity, check, refuse_errors
from syncer.options import JobSpec, Mode, OnConflict, Options, Symlinks, Verb
from syncer.tree import Features

LOCAL = Features(
    write=True,
    local=True,
    symlinks=True,
    hard_links=True,
    specials=True,
    mode=True,
    owner=True,
    xattrs=True,
    holes=True,
    rename=True,
)
STORE = replace(LOCAL, chunked=True)
S3 = Features(write=True, directories=False, conditional=True, mtime_resolution_ns=0)
SFTP = replace(LOCAL, local=False, xattrs=False, round_trip_s=0.04)
HTTP = Features(write=False, why_not="web servers are only read")
FAT = replace(LOCAL, owner=False)


class Case(NamedTuple):
    verb: Verb
    source: Features
    destination: Features
    options: dict[str, Any]


def copy(source: Features, destination: Features, **options: Any) -> Case:
    return Case(Verb.COPY, source, destination, options)


def sync(source: Features, destination: Features, **options: Any) -> Case:
    return Case(Verb.SYNC, source, destination, options)


def backup(**options: Any) -> Case:
    return Case(Verb.BACKUP, LOCAL, STORE, options)


def verify(**options: Any) -> Case:
    return Case(Verb.VERIFY, LOCAL, LOCAL, options)


def push(destination: Features, **options: Any) -> Case:
    return Case(Verb.PUSH, LOCAL, destination, options)


def advise(case: Case, destination: str = "/to") -> list[Advice]:
    spec = JobSpec(case.verb, "/from", destination, Options(**case.options))
    return check(spec, case.source, case.destination)


PLAIN = copy(LOCAL, LOCAL)
MIRROR = {"mode": Mode.MIRROR}
UPDATE = {"mode": Mode.UPDATE}

# By rule: where it applies, and the nearest where it does not.
TABLE: dict[str, tuple[list[Case], list[Case]]] = {
    "destination-read-only": (
        [copy(LOCAL, HTTP), push(HTTP), Case(Verb.RESTORE, STORE, HTTP, {})],
        [copy(HTTP, LOCAL), Case(Verb.VERIFY, LOCAL, HTTP, {}), Case(Verb.BACKUP, HTTP, STORE, {})],
    ),
    "negative-number": (
        [
            copy(LOCAL, LOCAL, parallel=-1),
            sync(LOCAL, LOCAL, delete_max=-0.1, **MIRROR),
            copy(LOCAL, LOCAL, reserve_bytes=-1),
            copy(LOCAL, LOCAL, mtime_window_ns=-1),
        ],
        [copy(LOCAL, LOCAL, parallel=0, reserve_bytes=0), sync(LOCAL, LOCAL, delete_max=0.0)],
    ),
    "bandwidth-invalid": (
        [copy(LOCAL, S3, bandwidth="fast")],
        [copy(LOCAL, S3, bandwidth="08:00-18:00 5M, 2M on metered"), PLAIN],
    ),
    "filters-invalid": (
        [copy(LOCAL, S3, filters=("*.o",)), backup(filters=("- [",))],
        [copy(LOCAL, S3, filters=("- *.o", "max-size 1G"))],
    ),
    "expires-invalid": ([backup(expires="soon")], [backup(expires="30d"), backup()]),
    "compression-unknown": (
        [backup(compression="gzip")],
        [backup(compression="zstd"), backup(compression="none"), backup()],
    ),
    "mode-without-sync": ([copy(LOCAL, LOCAL, **MIRROR), backup(**UPDATE)], [sync(LOCAL, LOCAL)]),
    "mirror-without-recursive": (
        [sync(LOCAL, LOCAL, recursive=False, **MIRROR)],
        [sync(LOCAL, LOCAL, recursive=False), sync(LOCAL, LOCAL, **MIRROR)],
    ),
    "update-without-times": (
        [sync(LOCAL, S3, **UPDATE), sync(LOCAL, LOCAL, times=False, **UPDATE)],
        [sync(LOCAL, LOCAL, **UPDATE), sync(LOCAL, S3)],
    ),
    "trash-outside": (
        [
            sync(LOCAL, LOCAL, trash=trash, **MIRROR)
            for trash in ("/trash", "../trash", "a/../..", ".", "./")
        ],
        [sync(LOCAL, LOCAL, trash=trash, **MIRROR) for trash in ("", ".trash", "a/b", "...")],
    ),
    "trash-without-rename": (
        [sync(LOCAL, S3, trash=".trash", **MIRROR)],
        [sync(LOCAL, SFTP, trash=".trash", **MIRROR), sync(LOCAL, S3, **MIRROR)],
    ),
    "delete-without-mirror": (
        [sync(LOCAL, LOCAL, force=True), copy(LOCAL, LOCAL, delete_max=5.0)],
        [sync(LOCAL, LOCAL, force=True, **MIRROR), PLAIN],
    ),
    "force-over-delete-max": (
        [sync(LOCAL, LOCAL, force=True, delete_max=5.0, **MIRROR)],
        [
            sync(LOCAL, LOCAL, force=True, **MIRROR),
            sync(LOCAL, LOCAL, delete_max=5.0, **MIRROR),
            sync(LOCAL, LOCAL, force=True, delete_max=5.0),
        ],
    ),
    "trash-without-writing": (
        [backup(trash=".t"), verify(trash=".t")],
        [copy(LOCAL, LOCAL, trash=".t"), PLAIN],
    ),
    "compression-does-nothing": (
        [copy(LOCAL, LOCAL, compression="zstd"), copy(LOCAL, S3, compression="lz4")],
        [copy(LOCAL, LOCAL, compression="none"), backup(compression="zstd"), PLAIN],
    ),
    "bandwidth-local": (
        [copy(LOCAL, LOCAL, bandwidth="5M")],
        [copy(LOCAL, S3, bandwidth="5M"), copy(S3, LOCAL, bandwidth="5M"), PLAIN],
    ),
    "smart-moves-whole-files": (
        [copy(LOCAL, S3, smart=True)],
        [copy(LOCAL, LOCAL, smart=True), backup(smart=True), copy(LOCAL, S3)],
    ),
    "smart-without-moving": ([verify(smart=True)], [verify(), copy(LOCAL, LOCAL, smart=True)]),
    "verify-twice": ([verify(verify=True)], [verify(), copy(LOCAL, LOCAL, verify=True)]),
    "numeric-ids-without-owners": (
        [copy(LOCAL, LOCAL, numeric_ids=True)],
        [copy(LOCAL, LOCAL, numeric_ids=True, owners=True), PLAIN],
    ),
    "checksum-of-existing": (
        [copy(LOCAL, LOCAL, checksum=True, ignore_existing=True)],
        [copy(LOCAL, LOCAL, checksum=True), copy(LOCAL, LOCAL, ignore_existing=True)],
    ),
    "update-of-existing": (
        [sync(LOCAL, LOCAL, ignore_existing=True, **UPDATE)],
        [sync(LOCAL, LOCAL, ignore_existing=True), sync(LOCAL, LOCAL, **UPDATE)],
    ),
    "window-with-checksum": (
        [copy(LOCAL, LOCAL, checksum=True, mtime_window_ns=1)],
        [copy(LOCAL, LOCAL, mtime_window_ns=1), copy(LOCAL, LOCAL, checksum=True)],
    ),
    "snapshot-options": (
        [
            copy(LOCAL, LOCAL, name="a"),
            sync(LOCAL, LOCAL, tags=("a",)),
            copy(LOCAL, LOCAL, expires="1d"),
        ],
        [backup(name="a", tags=("a",), expires="1d"), PLAIN],
    ),
    "conflict-without-push": (
        [copy(LOCAL, LOCAL, on_conflict=OnConflict.OURS)],
        [push(S3, on_conflict=OnConflict.OURS), PLAIN],
    ),
    "one-file-system-of-remote": (
        [copy(S3, LOCAL, one_file_system=True)],
        [copy(LOCAL, S3, one_file_system=True), copy(S3, LOCAL)],
    ),
    "durable-elsewhere": (
        [copy(LOCAL, S3, durable=False)],
        [copy(LOCAL, LOCAL, durable=False), copy(LOCAL, S3), backup(durable=False)],
    ),
    "compared-by-size": (
        [sync(LOCAL, S3), copy(LOCAL, LOCAL, times=False)],
        [sync(LOCAL, S3, checksum=True), sync(LOCAL, S3, ignore_existing=True), PLAIN, backup()],
    ),
    "checksum-over-wire": (
        [sync(LOCAL, SFTP, checksum=True), sync(S3, LOCAL, checksum=True)],
        [sync(LOCAL, LOCAL, checksum=True), sync(LOCAL, SFTP), backup(checksum=True)],
    ),
    "verify-over-wire": (
        [copy(LOCAL, S3, verify=True)],
        [copy(LOCAL, LOCAL, verify=True), copy(S3, LOCAL, verify=True), copy(LOCAL, S3)],
    ),
    "verify-from-memory": (
        [copy(LOCAL, LOCAL, verify=True, durable=False)],
        [copy(LOCAL, LOCAL, verify=True), copy(LOCAL, LOCAL, durable=False)],
    ),
    "not-kept": (
        [
            copy(LOCAL, S3),
            copy(LOCAL, SFTP, xattrs=True),
            copy(LOCAL, replace(SFTP, owner=False), owners=True),
            copy(LOCAL, replace(LOCAL, hard_links=False)),
        ],
        [
            PLAIN,
            copy(LOCAL, SFTP),
            copy(S3, S3),
            copy(LOCAL, replace(LOCAL, hard_links=False), hard_links=False),
        ],
    ),
    "owners-without-privilege": (
        [copy(LOCAL, FAT, owners=True)],
        [copy(LOCAL, FAT), copy(LOCAL, LOCAL, owners=True)],
    ),
    "symlinks-impossible": (
        [copy(LOCAL, S3)],
        [
            copy(LOCAL, S3, symlinks=Symlinks.FOLLOW),
            copy(LOCAL, S3, symlinks=Symlinks.SKIP),
            copy(S3, S3),
            PLAIN,
        ],
    ),
    "specials-impossible": (
        [copy(LOCAL, S3)],
        [copy(LOCAL, S3, specials=False), copy(S3, S3), PLAIN],
    ),
    "backup-follows-symlinks": (
        [backup(symlinks=Symlinks.FOLLOW)],
        [backup(symlinks=Symlinks.SKIP), copy(LOCAL, LOCAL, symlinks=Symlinks.FOLLOW)],
    ),
    "backup-does-by-itself": (
        [backup(fail_fast=True), backup(resume=False), backup(durable=False)],
        [backup(verify=True), copy(LOCAL, LOCAL, fail_fast=True)],
    ),
    "compression-of-daemon": (
        [copy(LOCAL, STORE, compression="none"), copy(LOCAL, STORE, compression="lz4")],
        [backup(compression="lz4"), copy(LOCAL, LOCAL, compression="lz4"), copy(LOCAL, STORE)],
    ),
    "push-looks-before": ([push(SFTP)], [push(S3), PLAIN]),
    "mirror-without-limit": (
        [sync(LOCAL, LOCAL, force=True, **MIRROR)],
        [sync(LOCAL, LOCAL, force=True, trash=".t", **MIRROR), sync(LOCAL, LOCAL, **MIRROR)],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_applies_where_it_should_and_nowhere_else(name: str) -> None:
    applies, not_here = TABLE[name]
    for case in applies:
        (advice,) = (one for one in advise(case) if one.rule == name)
        assert len(advice.sentence) > 20
        assert "{" not in advice.sentence
    for case in not_here:
        assert name not in {one.rule for one in advise(case)}


def test_a_destination_is_needed() -> None:
    assert [one.rule for one in advise(PLAIN, "")] == ["destination-missing"]
    assert not advise(verify(), "")
    assert not advise(backup(), "")


def test_the_daemons_store_has_a_codec_of_its_own() -> None:
    (advice,) = advise(backup(compression="lz4"), "")
    assert advice.rule == "compression-of-daemon"


def test_every_rule_has_its_cases_and_a_name_of_its_own() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {*TABLE, "destination-missing"} == set(names)


def test_what_is_usual_needs_no_advice() -> None:
    for case in (PLAIN, sync(LOCAL, LOCAL), backup(), verify(), copy(SFTP, LOCAL), push(S3)):
        unasked = {"symlinks-impossible", "specials-impossible", "not-kept", "compared-by-size"}
        assert {one.rule for one in advise(case)} <= (unasked if case.destination is S3 else set())


def test_sentences_name_what_they_are_about() -> None:
    def sentence(case: Case, rule: str) -> str:
        return next(one.sentence for one in advise(case) if one.rule == rule)

    assert "web servers are only read" in sentence(copy(LOCAL, HTTP), "destination-read-only")
    lost = sentence(copy(LOCAL, S3, xattrs=True, owners=True), "not-kept")
    for what in ("permissions", "owners", "extended attributes", "hard links", "empty directories"):
        assert what in lost
    assert "'fast' is no rate" in sentence(copy(LOCAL, S3, bandwidth="fast"), "bandwidth-invalid")
    assert "both ends are local" in sentence(
        copy(LOCAL, LOCAL, compression="zstd"), "compression-does-nothing"
    )


def test_errors_come_first_and_refuse() -> None:
    found = advise(sync(LOCAL, S3, compression="gzip", smart=True, **UPDATE))
    severities = [one.severity for one in found]
    assert severities == sorted(severities, key=lambda one: one is Severity.NOTICE)
    assert {Severity.ERROR, Severity.NOTICE} == set(severities)
    with pytest.raises(Refused) as error:
        refuse_errors(found)
    assert "gzip" in str(error.value)
    assert "newer" in str(error.value)
    notices = advise(copy(LOCAL, S3))
    assert refuse_errors(notices) == notices


@settings(deadline=None)
@given(
    verb=st.sampled_from(Verb),
    source=st.sampled_from((LOCAL, STORE, S3, SFTP, HTTP, FAT)),
    destination=st.sampled_from((LOCAL, STORE, S3, SFTP, HTTP, FAT)),
    options=st.builds(Options, compression=st.sampled_from(("", "zstd", "lz4", "none"))),
)
def test_any_combination_is_answered(
    verb: Verb, source: Features, destination: Features, options: Options
) -> None:
    for advice in check(JobSpec(verb, "/from", "/to", options), source, destination):
        assert advice.sentence
