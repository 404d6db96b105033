"""Jobs, their progress and reports, as text for people. Pure: JSON objects in, text out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from cli.render import duration, plain, size

Answer = dict[str, Any]

_BAR: Final = 24  # characters
_CURRENT_SHOWN: Final = 2
_FAILURES_SHOWN: Final = 20  # lines
_ALIKE_SHOWN: Final = 3  # of one reason; more have one line
ENDED: Final = frozenset({"done", "partly", "failed", "cancelled"})
_EXIT: Final = {"done": 0, "partly": 1, "failed": 2, "cancelled": 2}


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`, `2 directories`."""
    if number == 1:
        return f"1 {what}"
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number} {many}"


def bar(share: float) -> str:
    """A bar of fixed width."""
    full = round(_BAR * min(1.0, max(0.0, share)))
    return "█" * full + "░" * (_BAR - full)


def progress_lines(progress: Answer) -> list[str]:
    """A few lines that are drawn over and over."""
    done, total = progress["bytes_done"], progress["bytes_total"]
    files = f"{progress['files_done']}/{progress['files_total']} files"
    if not progress["planned"]:
        files += " so far"
    parts = [f"{plain(progress['phase'])}: {files}", f"{size(done)} of {size(total)}"]
    if progress["bytes_per_s"] > 0:
        parts.append(f"{size(progress['bytes_per_s'])}/s")
    if progress["eta_s"] is not None and progress["planned"]:
        parts.append(f"{duration(progress['eta_s'])} left")
    if progress["files_equal"]:
        parts.append(f"{progress['files_equal']} equal")
    if progress["files_failed"]:
        parts.append(f"{progress['files_failed']} failed")
    lines = [", ".join(parts)]
    if total and progress["planned"]:
        lines.insert(0, f"{bar(done / total)} {done / total:4.0%}")
    lines += [f"  {plain(name)}" for name in progress["current"][:_CURRENT_SHOWN]]
    return lines


def event_text(event: Answer) -> str:
    """One line for `--verbose`."""
    words = {
        "directory.made": "made", "file.copied": "copied", "file.linked": "linked",
        "file.failed": "FAILED", "file.retried": "retrying", "metadata.set": "given attributes",
        "name.deleted": "deleted", "name.trashed": "into the trash", "difference": "differs",
        "notice": "note",
    }  # fmt: skip
    name = event["event"]
    would = name.startswith("would.")
    word = words.get(name.removeprefix("would."), name)
    where = event["destination"] or event["source"] or "."  # the root of what is copied
    text = f"{'would be ' if would else ''}{word} {plain(where)}"
    if event["bytes"]:
        text += f", {size(event['bytes'])}"
    if event.get("message"):
        text += f": {plain(event['message'])}"
    return text


def report_lines(report: Answer, *, verbose: bool = False) -> Iterator[str]:
    """What became of a job."""
    would = "would be " if report["dry_run"] else ""
    done = [
        f"{count(number, what)} {would}{verb}"
        for number, what, verb in (
            (report["files_copied"], "file", "copied"),
            (report["links_made"], "link", "made"),
            (report["specials_made"], "special file", "made"),
            (report["directories_made"], "directory", "made"),
            (report["metadata_set"], "file", "given other attributes"),
            (report["deleted"], "name", "deleted"),
            (report["trashed"], "file", "put into the trash"),
        )
        if number
    ]
    first = ", ".join(done) or _nothing(report)
    yield f"{plain(report['outcome'])}: {first}"
    if report["bytes_moved"] or report["bytes_saved"]:
        line = f"  {size(report['bytes_moved'])} {would}moved"
        if report["bytes_saved"]:
            line += f", {size(report['bytes_saved'])} not moved: shared, or there already"
        if report["bytes_moved"] and report["seconds"] > 0 and not report["dry_run"]:
            line += f"; {size(report['bytes_moved'] / report['seconds'])}/s"
        yield line + f"; took {duration(report['seconds'])}"
    if report["files_equal"]:
        yield f"  {count(report['files_equal'], 'file')} equal"
    if report["files_left_out"]:
        yield f"  {count(report['files_left_out'], 'name')} left out by filters or options"
    if report["snapshot"]:
        yield f"  snapshot {plain(report['snapshot'])}"
    if verbose and report["how"]:
        ways = ", ".join(f"{number} by {plain(how)}" for how, number in report["how"].items())
        yield f"  copied: {ways}"
    yield from _missing_lines(report)


def _nothing(report: Answer) -> str:
    if report["verb"] == "verify":
        return "everything is alike" if not report["failed"] else "not everything is alike"
    return "nothing was done" if report["failed"] else "nothing to do"


def _missing_lines(report: Answer) -> Iterator[str]:
    """What was not done."""
    if report["deletions_withheld"]:
        yield f"  {count(report['deletions_withheld'], 'deletion')} not carried out"
    if report["differences"]:
        yield f"  {count(report['differences'], 'difference')}"
    elif report["failed"]:
        yield f"  {report['failed']} failed:"
    alike = math.inf if report["differences"] else _ALIKE_SHOWN
    told = 0
    for number, line in islice(_failure_lines(report, alike), _FAILURES_SHOWN):
        told += number
        yield f"    {line}"
    if report["failed"] > told:
        yield f"    … and {report['failed'] - told} more"


def _failure_lines(report: Answer, alike: float) -> Iterator[tuple[int, str]]:
    """How many failures, and a line for them: one for all that have one reason, if they are many.

    `alike`: so many of one reason have a line each.
    """
    reasons: dict[str, list[str]] = {}
    for failure in report["failures"]:
        reasons.setdefault(failure["error"], []).append(failure["path"])
    for reason, paths in reasons.items():
        why = plain(reason)
        # Reports of older versions have not counted them.
        number = max(len(paths), report.get("reasons", {}).get(reason, 0))
        if number > alike:
            yield number, f"{why} ({number:,} files; the first: {plain(paths[0])})"
            continue
        for path in paths:
            yield 1, f"{plain(path)}: {why}" if path else why


def job_line(job: Answer) -> str:
    """One line of a list."""
    spec = job["spec"]
    what = f"{spec['verb']} {spec['source']}"
    if spec.get("destination"):
        what += f" → {spec['destination']}"
    line = f"{job['number']:>6}  {job['state']:<9}  {plain(what)}"
    progress = job.get("progress") or {}
    if job["state"] == "running" and progress.get("bytes_total"):
        line += f"  {progress['bytes_done'] / progress['bytes_total']:.0%}"
    if job["reason"]:
        line += f"  ({plain(job['reason'])})"
    return line


def job_text(job: Answer) -> str:
    """All there is to say of one job."""
    lines = [job_line(job)]
    if job.get("schedule"):
        lines.append(f"  a run of schedule {job['schedule']}")
    if job["after"]:
        lines.append(f"  after {', '.join(map(str, job['after']))}")
    if job["attempt"] > 1:
        lines.append(f"  begun {job['attempt']} times")
    if job["report"]:
        lines += [f"  {line}" for line in report_lines(job["report"], verbose=True)]
    elif job["progress"]:
        lines += [f"  {line}" for line in progress_lines(job["progress"])]
    return "\n".join(lines)


def exit_code(job: Answer) -> int:
    """With what a program ends that has waited for a job; 0 for one that has not ended."""
    return int(job["report"].get("exit_code", _EXIT.get(job["state"], 0)))


def log_line(event: Answer) -> str:
    """One line of a job's log."""
    words = [event.get("event"), event.get("destination"), event.get("message")]
    text = "  ".join(plain(word) for word in words if word)
    return f"{event.get('timestamp', ''):<27} {text}"


def audit_line(record: Answer) -> str:
    """One record of the audit trail."""
    moved = f"  {size(record['bytes'])}" if record["bytes"] else ""
    where = record["destination"] or record["source"]
    line = f"{record['event']:<16} {record['outcome']}  {where}{moved}"
    return f"{record['timestamp']}  job {record['job']}  {plain(line)}"


def audit_report(report: Answer) -> str:
    """Whether the audit trail is whole."""
    torn = f", {report['torn']} cut by crashes and marked so" if report["torn"] else ""
    pruned = f"; {report['pruned']} older ones were removed by age" if report["pruned"] else ""
    text = f"{report['records']} records are right{torn}{pruned}"
    if report["problem"] is not None:
        text += f"\nBROKEN: {plain(report['problem']['message'])}"
    return text
