"""The audit chain: whatever is done to it shows; crashes lose no record in silence."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import OrbitError, StorageFailed, StorageFull
from syncer.audit import AuditBroken, AuditLog, AuditRecord
from syncer.audit_records import BEGINNING, check_line, encode_record, fields_of
from syncer.audit_verify import AuditFilter, export, show, verify
from syncer.jobs import Jobs
from syncer.options import JobSpec, Verb
from tests.simdisk import SimDisk, SimulatedCrash, abandon

KEY = bytes(range(32))
S = 10**9


def record(n: int, **more) -> AuditRecord:
    return AuditRecord("file.copied", f"/a/{n}", f"/b/{n}", bytes=n, time_ns=n * S, **more)


def fill(folder: Path, count: int, **more) -> None:
    log = AuditLog.open(folder, **more)
    for n in range(1, count + 1):
        log.append(7, [record(n)])
    log.close()


def log_of(folder: Path) -> Path:
    (path,) = sorted(folder.glob("audit-*.log"))
    return path


_texts = st.text(st.characters(codec=None), max_size=9)


@given(
    st.builds(
        AuditRecord,
        _texts,
        _texts,
        _texts,
        st.integers(),
        st.floats(0, 1e9),
        _texts,
        _texts,
        _texts,
        st.integers(0, 1 << 60),
    ),
    st.integers(0, 1 << 40),
)
def test_a_record_is_one_line_with_its_fields_and_is_right(one, job):
    line, link = encode_record(KEY, BEGINNING, job, one, 5)
    assert line.count(b"\n") == 1
    assert line == json.dumps(json.loads(line), separators=(",", ":")).encode() + b"\n"
    assert check_line(KEY, BEGINNING, line) == link
    assert check_line(KEY, link, line) is None
    assert check_line(bytes(32), BEGINNING, line) is None
    fields = fields_of(line)
    assert fields is not None
    assert (fields["event"], fields["source"], fields["destination"]) == one[:3]
    assert (fields["bytes"], fields["outcome"], fields["job"]) == (one.bytes, one.outcome, job)
    assert (fields["checksum"], fields["compression"], fields["sequence"]) == (*one[5:7], 1)


def test_the_chain_goes_on_over_restarts_and_is_private(tmp_path):
    for start in (1, 4, 7):
        log = AuditLog.open(tmp_path / "audit")
        assert log.append(3, [record(n) for n in range(start, start + 3)]) == start + 2
        log.close()
    report = verify(tmp_path / "audit")
    assert (report.records, report.torn, report.problem) == (9, 0, None)
    assert [each["bytes"] for each in show(tmp_path / "audit")] == list(range(1, 10))
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    for path in (tmp_path / "audit").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_without_a_chain_is_in_order(tmp_path):
    assert verify(tmp_path / "audit").problem is None
    assert list(show(tmp_path / "audit")) == []


# --- tampering ----------------------------------------------------------------------------------


def test_any_changed_byte_shows_at_its_record(tmp_path):
    fill(tmp_path, 2)
    path = log_of(tmp_path)
    content = path.read_bytes()
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        problem = verify(tmp_path).problem
        assert problem is not None, at
        assert problem.sequence == 1 + sum(end < at for end in ends), at
    path.write_bytes(content)
    assert verify(tmp_path).problem is None


def test_any_cut_shows(tmp_path):
    fill(tmp_path, 2)
    path = log_of(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        problem = verify(tmp_path).problem
        assert problem is not None, length
        assert problem.kind == "truncated", length
        assert problem.sequence == 1 + content[:length].count(b"\n"), length


def test_any_changed_byte_of_the_head_shows_and_its_absence(tmp_path):
    fill(tmp_path, 2)
    head = tmp_path / "audit.head"
    content = head.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0x04
        head.write_bytes(changed)
        problem = verify(tmp_path).problem
        assert problem is not None, at
        assert problem.kind == "head", at
    head.unlink()
    assert verify(tmp_path).problem.kind == "head"


def _lines(folder: Path) -> list[bytes]:
    return log_of(folder).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("at", range(5))
def test_removed_records_are_named(tmp_path, at):
    fill(tmp_path, 5)
    kept = _lines(tmp_path)
    del kept[at]
    log_of(tmp_path).write_bytes(b"".join(kept))
    problem = verify(tmp_path).problem
    assert (problem.kind, problem.sequence) == ("truncated" if at == 4 else "removed", at + 1)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("what", ["forged", "repeated", "noise"])
def test_inserted_records_are_named(tmp_path, at, what):
    fill(tmp_path, 5)
    kept = _lines(tmp_path)
    forged = encode_record(KEY, BEGINNING._replace(sequence=at), 7, record(99), 0)[0]
    kept.insert(at, {"forged": forged, "repeated": kept[0], "noise": b"{}\n"}[what])
    log_of(tmp_path).write_bytes(b"".join(kept))
    problem = verify(tmp_path).problem
    if what == "repeated" and at == 0:
        assert (problem.kind, problem.sequence) == ("inserted", 2)
    else:
        assert (problem.kind, problem.sequence) == ("inserted", at + 1)


def test_swapped_records_and_what_comes_behind_the_end_show(tmp_path):
    fill(tmp_path, 5)
    kept = _lines(tmp_path)
    kept[1], kept[2] = kept[2], kept[1]
    log_of(tmp_path).write_bytes(b"".join(kept))
    assert verify(tmp_path).problem.sequence == 2
    kept[1], kept[2] = kept[2], kept[1]
    log_of(tmp_path).write_bytes(b"".join([*kept, b"more\n"]))
    assert verify(tmp_path).problem.sequence == 6


def test_a_chain_with_another_key_or_none_shows(tmp_path):
    fill(tmp_path / "a", 3)
    key = tmp_path / "a" / "audit.key"
    right = key.read_bytes()
    key.write_bytes(KEY)
    assert verify(tmp_path / "a").problem.sequence == 1
    for content in (b"", right[:-1]):
        key.write_bytes(content)
        assert verify(tmp_path / "a").problem.kind == "key"
        with pytest.raises(AuditBroken, match="key"):
            AuditLog.open(tmp_path / "a")
    key.unlink()
    assert verify(tmp_path / "a").problem.kind == "key"
    with pytest.raises(AuditBroken, match="missing"):
        AuditLog.open(tmp_path / "a")
    key.write_bytes(right)
    assert verify(tmp_path / "a").problem is None


@pytest.mark.parametrize("how", ["cut", "gone", "head gone", "head forged"])
def test_going_on_after_tampering_keeps_the_evidence(tmp_path, how):
    fill(tmp_path, 5)
    if how == "cut":
        log_of(tmp_path).write_bytes(b"".join(_lines(tmp_path)[:3]))
    elif how == "gone":
        log_of(tmp_path).unlink()
    elif how == "head gone":
        (tmp_path / "audit.head").unlink()
    else:
        (tmp_path / "audit.head").write_text("{}\nnone\n")
    for _ in range(2):
        fill(tmp_path, 3)
        problem = verify(tmp_path).problem
        assert problem is not None
        assert problem.sequence == (4 if how == "cut" else 1 if how == "gone" else 6)
    assert any(each["event"] == "audit.gap" for each in show(tmp_path))


# --- crashes ------------------------------------------------------------------------------------


def test_a_record_cut_anywhere_is_marked_and_the_chain_goes_on(tmp_path):
    log = AuditLog.open(tmp_path)
    log.append(7, [record(1), record(2)])
    log.sync()
    path = log_of(tmp_path)
    kept = path.read_bytes()
    head = (tmp_path / "audit.head").read_bytes()
    log.append(7, [record(3)])
    log.close()
    whole = path.read_bytes()
    for length in [*range(len(kept) + 1, len(whole), 5), len(whole) - 1]:
        path.write_bytes(whole[:length])
        (tmp_path / "audit.head").write_bytes(head)
        assert verify(tmp_path).problem.kind == "torn"
        log = AuditLog.open(tmp_path)
        log.append(7, [record(4)])
        log.close()
        report = verify(tmp_path)
        assert (report.records, report.problem) == (4, None), length
        # Where only the newline is missing, the record is there.
        third = "file.copied" if length == len(whole) - 1 else "audit.torn"
        assert [each["event"] for each in show(tmp_path)][2] == third
        assert report.torn == (third == "audit.torn")


def test_what_was_torn_and_marked_cannot_be_changed_either(tmp_path):
    fill(tmp_path, 2)
    path = log_of(tmp_path)
    kept = path.read_bytes()
    path.write_bytes(kept + b'{"half a rec')
    fill(tmp_path, 1)
    assert (verify(tmp_path).torn, verify(tmp_path).problem) == (1, None)
    content = bytearray(path.read_bytes())
    content[len(kept) + 3] ^= 1
    path.write_bytes(content)
    assert verify(tmp_path).problem.sequence == 3


FOLDER = Path("/audit")


def _history(disk: SimDisk, seed: int, n: int, synced: list[int]) -> None:
    """Append records from `n` on, and note those that were synced."""
    rng = random.Random(seed)
    log = AuditLog.open(FOLDER, disk, file_bytes_max=3_000)
    waiting: list[int] = []
    try:
        for _ in range(rng.randint(1, 12)):
            batch = list(range(n, n + rng.randint(1, 4)))
            n += len(batch)
            waiting += batch
            log.append(7, [record(each) for each in batch])
            if rng.random() < 0.4:
                log.sync()
                synced += waiting
                waiting.clear()
        log.close()
        synced += waiting
    finally:
        abandon(log.close)


@pytest.mark.parametrize("seed", range(60))
def test_after_a_power_cut_all_that_was_synced_is_there_and_verifies(seed):
    rng = random.Random(seed)
    disk = SimDisk(seed)
    synced: list[int] = []
    for life in range(5):
        disk.crash_at(rng.randint(1, 60))
        with contextlib.suppress(SimulatedCrash):
            _history(disk, rng.randrange(1 << 30), 1_000 * life, synced)
        disk = disk.crash()
        if synced or disk.exists(FOLDER):
            AuditLog.open(FOLDER, disk, file_bytes_max=3_000).close()
            assert verify(FOLDER, disk).problem is None
            found = [each["bytes"] for each in show(FOLDER, disk=disk) if each["job"] == 7]
            assert found == sorted(set(found))
            assert set(synced) <= set(found)


@pytest.mark.parametrize("error", [StorageFull("full"), StorageFailed("broken")])
def test_after_a_failed_operation_the_chain_goes_on(error):
    for at in range(1, 40):
        disk = SimDisk(at)
        log = None
        written = 0
        disk.fail_at(at, error)
        try:
            log = AuditLog.open(FOLDER, disk, file_bytes_max=1_500)
            for n in range(1, 9):
                log.append(7, [record(n)])
                written = n
                log.sync()
        except OrbitError:
            pass
        disk.heal()
        log = log or AuditLog.open(FOLDER, disk, file_bytes_max=1_500)
        log.append(7, [record(99)])
        log.sync()
        report = verify(FOLDER, disk)
        assert report.problem is None, at
        found = [each["bytes"] for each in show(FOLDER, disk=disk) if each["job"] == 7]
        assert found[-1] == 99
        assert found[:written] == list(range(1, written + 1))
        log.close()


def test_appending_seals_by_itself_now_and_then(tmp_path):
    now = [0.0]
    log = AuditLog.open(tmp_path, clock=lambda: now[0])
    for seconds, sealed in ((0.9, False), (0.2, True), (0.5, False), (0.6, True)):
        now[0] += seconds
        log.append(7, [record(1)])
        path = log_of(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(b"".join(_lines(tmp_path)[:-1]))  # what is not sealed could be lost
        assert (verify(tmp_path).problem is not None) == sealed
        path.write_bytes(whole)
    log.append(7, [record(2)] * 10_000)
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(tmp_path).problem.kind == "truncated"


# --- age ----------------------------------------------------------------------------------------

DAY = 86_400 * S


class Calendar:
    """A clock that is set, in days since 1970."""

    def __init__(self) -> None:
        self.day = 1_000.0

    def now_ns(self) -> int:
        return round(self.day * DAY)

    def seconds(self) -> float:
        return self.day * 86_400

    def log(self, folder: Path, disk: SimDisk | None = None, keep_days: int = 30) -> AuditLog:
        return AuditLog.open(
            folder,
            disk,
            file_bytes_max=3_000,
            keep_days=keep_days,
            now_ns=self.now_ns,
            clock=self.seconds,
        )

    def record(self) -> AuditRecord:
        """One of today."""
        return AuditRecord("file.copied", bytes=int(self.day))


def _days(folder: Path, disk: SimDisk | None = None) -> list[int]:
    return [each["bytes"] for each in show(folder, AuditFilter(job=7), disk)]


@pytest.mark.parametrize("stays_open", [False, True])
def test_what_is_too_old_is_removed_and_the_rest_verifies(tmp_path, stays_open):
    calendar = Calendar()
    log = calendar.log(tmp_path)
    for day in range(1_000, 1_100):
        calendar.day = day
        if not stays_open:
            log.close()
            log = calendar.log(tmp_path)
        log.append(7, [calendar.record()])
        kept = _days(tmp_path)
        # A file ends when it is more than a day old, or full.
        assert kept == list(range(kept[0], day + 1))
        assert day - 32 <= kept[0] <= max(1_000, day - 28)
    log.close()
    report = verify(tmp_path)
    assert report.problem is None
    assert report.pruned > 100
    assert report.records == sum(path.read_text().count("\n") for path in tmp_path.glob("*.log"))


def test_nothing_is_removed_unless_it_is_asked_for(tmp_path):
    calendar = Calendar()
    for day in (1_000, 1_500, 9_000):
        calendar.day = day
        log = calendar.log(tmp_path, keep_days=0)
        log.append(7, [calendar.record()])
        log.close()
    assert _days(tmp_path) == [1_000, 1_500, 9_000]
    assert len(list(tmp_path.glob("*.log"))) == 1


def test_who_removes_old_files_by_hand_is_noticed(tmp_path):
    calendar = Calendar()
    for day in range(1_000, 1_060, 3):
        calendar.day = day
        log = calendar.log(tmp_path)
        log.append(7, [calendar.record()])
        log.close()
    names = sorted(tmp_path.glob("*.log"))
    assert verify(tmp_path).pruned
    for path in names:
        content = path.read_bytes()
        path.unlink()
        problem = verify(tmp_path).problem
        assert problem is not None
        assert problem.sequence == json.loads(content.splitlines()[0])["sequence"]
        path.write_bytes(content)
    # Nor can the record of it be made up without the key.
    head = (tmp_path / "audit.head").read_text()
    fields = json.loads(head.splitlines()[0])
    forged = json.dumps(fields | {"start": fields["start"] + 1}, separators=(",", ":"))
    (tmp_path / "audit.head").write_text(forged + "\n" + head.splitlines()[1] + "\n")
    assert verify(tmp_path).problem is not None


def test_a_second_process_knows_what_the_first_has_removed(tmp_path):
    calendar = Calendar()
    other = calendar.log(tmp_path, keep_days=0)
    for day in (1_000, 1_002, 1_004, 1_040):
        calendar.day = day
        log = calendar.log(tmp_path)
        log.append(7, [calendar.record()])
        log.close()
    assert _days(tmp_path) == [1_040]
    other.append(7, [calendar.record()])
    other.close()
    assert verify(tmp_path).problem is None
    assert verify(tmp_path).pruned


@pytest.mark.parametrize("days", [0, 30])
def test_a_worker_keeps_the_trail_for_as_long_as_it_is_told(tmp_path, days):
    old = Calendar().log(tmp_path / "state" / "audit")
    old.append(7, [Calendar().record()])
    old.close()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").write_text("x")
    jobs = Jobs.open(tmp_path / "state" / "jobs.db")
    jobs.submit(JobSpec(Verb.COPY, str(tmp_path / "source"), str(tmp_path / "target")))
    jobs.close()
    command = [sys.executable, "-m", "syncer.worker", "--state", str(tmp_path / "state")]
    subprocess.run([*command, "--classes", "[]", "--audit-keep-days", str(days)], check=True)
    assert (tmp_path / "target" / "f").exists()
    assert _days(tmp_path / "state" / "audit") == ([] if days else [1_000])
    assert verify(tmp_path / "state" / "audit").problem is None


def test_a_crash_at_every_call_while_files_are_removed():
    for at in itertools.count(1):
        calendar = Calendar()
        disk = SimDisk(at)
        for day in range(1_000, 1_010, 2):
            calendar.day = day
            log = calendar.log(FOLDER, disk)
            log.append(7, [calendar.record()])
            log.close()
        calendar.day = 1_036
        disk.crash_at(at)
        survived = False
        with contextlib.suppress(SimulatedCrash):
            calendar.log(FOLDER, disk).close()
            survived = True
        disk = disk.crash()
        problem = verify(FOLDER, disk).problem
        assert problem is None or problem.kind == "torn", at
        assert _days(FOLDER, disk)[-2:] == [1_006, 1_008]
        calendar.log(FOLDER, disk).close()
        assert verify(FOLDER, disk).problem is None, at
        assert _days(FOLDER, disk) == [1_006, 1_008]
        if survived:
            assert at > 10
            return


# --- rotation, several processes -----------------------------------------------------------------


def test_files_are_rotated_and_the_chain_runs_through_them(tmp_path):
    fill(tmp_path, 40, file_bytes_max=2_000)
    files = sorted(tmp_path.glob("audit-*.log"))
    assert len(files) > 3
    report = verify(tmp_path)
    assert report.problem is None
    assert report.records == 40 + 2 * (len(files) - 1)
    assert [each["bytes"] for each in show(tmp_path, AuditFilter(job=7))] == list(range(1, 41))
    first = [json.loads(path.read_bytes().splitlines()[0]) for path in files]
    last = [json.loads(path.read_bytes().splitlines()[-1]) for path in files]
    for before, after in zip(last, first[1:], strict=False):
        assert before["event"] == "audit.rotated"
        assert after["event"] == "audit.continued"
        assert after["checksum"] == f"hmac-sha256:{before['mac']}"
    for path in files:
        content = path.read_bytes()
        path.unlink()
        problem = verify(tmp_path).problem
        assert problem is not None
        assert problem.sequence == json.loads(content.splitlines()[0])["sequence"]
        path.write_bytes(content)


_WRITER = """
import sys
from pathlib import Path
from syncer.audit import AuditLog, AuditRecord
log = AuditLog.open(Path(sys.argv[1]), file_bytes_max=20_000)
job = int(sys.argv[2])
for batch in range(int(sys.argv[3])):
    log.append(job, [AuditRecord("file.copied", bytes=10 * batch + n) for n in range(10)])
    if batch % 5 == 4:
        log.sync()
        print(10 * batch + 9, flush=True)
log.close()
"""


def _start(folder: Path, job: int, batches: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(folder), str(job), str(batches)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_append_to_one_chain(tmp_path):
    writers = [_start(tmp_path, job, 60) for job in (1, 2)]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert verify(tmp_path).problem is None
    for job in (1, 2):
        found = [each["bytes"] for each in show(tmp_path, AuditFilter(job=job))]
        assert found == list(range(600))


def test_what_a_killed_process_has_synced_is_there(tmp_path):
    rng = random.Random(4)
    for job in (1, 2, 3):
        writer = _start(tmp_path, job, 100_000)
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 30)):
            synced = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        AuditLog.open(tmp_path).close()
        assert verify(tmp_path).problem is None
        found = [each["bytes"] for each in show(tmp_path, AuditFilter(job=job))]
        assert found == list(range(len(found)))
        assert len(found) > synced


# --- showing ------------------------------------------------------------------------------------


def test_records_are_filtered_by_job_time_and_path(tmp_path):
    log = AuditLog.open(tmp_path)
    log.append(1, [record(1), record(2), record(22)])
    log.append(2, [AuditRecord("name.deleted", destination="/b/2/x", bytes=5, time_ns=5 * S)])
    log.close()

    def found(**wanted) -> list[int]:
        return [each["bytes"] for each in show(tmp_path, AuditFilter(**wanted))]

    assert found(job=2) == [5]
    assert found(since_ns=2 * S, until_ns=22 * S) == [2, 5]
    assert found(path="/b/2") == [2, 5]
    assert found(path="/b/2/") == [5]
    assert found(path="/a/22", job=2) == []


def test_exports_can_be_read_and_hold_no_formula(tmp_path):
    names = ["plain", "=1+1", "two\nlines", "\udcff"]
    log = AuditLog.open(tmp_path)
    log.append(1, [AuditRecord("file.copied", name) for name in names])
    log.close()
    stream = io.StringIO()
    assert export(tmp_path, stream) == 4
    assert [json.loads(line)["source"] for line in stream.getvalue().splitlines()] == names
    stream = io.StringIO(newline="")
    assert export(tmp_path, stream, as_csv=True) == 4
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert [row["source"] for row in rows] == ["plain", "'=1+1", "two\\nlines", "\\udcff"]
