"""What the daemon answers, as text for people. Pure: values in, text out."""

from __future__ import annotations

from typing import Any

Answer = dict[str, Any]


def plain(text: object) -> str:
    """Return text that is safe on a terminal: names of files may hold escape sequences."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )


def size(count: float) -> str:
    """Return bytes in the unit that leaves one to four digits: 5 B, 1.5 KiB, 12 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(count) < 1024 or unit == "PiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 10 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return seconds in the unit people would use: 20 ms, 1.5 s, 3 min, 5 h, 2 days."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for length, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    raise AssertionError(seconds)


def _commit(commit: Answer) -> str:
    if commit["last_age_s"] is None:
        parts = ["no commit yet"]
    else:
        parts = [f"last commit {duration(commit['last_age_s'])} ago"]
        if commit["last_duration_s"] is not None:
            parts.append(f"took {duration(commit['last_duration_s'])}")
    if commit["in_flight_s"] is not None:
        parts.append(f"one running for {duration(commit['in_flight_s'])}")
    return ", ".join(parts)


def status(answer: Answer) -> str:
    """Return a few lines: state, what waits for the disk, what is stored, what is wrong."""
    dirty = f"{size(answer['dirty_bytes'])} and {answer['dirty_ops']} changes"
    rows = [
        (answer["state"], f"{answer['mount']}, stored in {answer['state_folder']}"),
        (
            "daemon",
            f"version {answer['version']}, pid {answer['pid']}, up {duration(answer['uptime_s'])}",
        ),
        ("dirty", f"{dirty}; {_commit(answer['commit'])}"),
        ("disk", f"{size(answer['free_bytes'])} free"),
    ]
    if answer["files"] is not None:
        content = f"{answer['files']:,} files in {answer['directories']:,} directories"
        content += f", {size(answer['logical_bytes'])}"
        if answer["projected"]:
            content += f"; {answer['projected']:,} entries of projections"
        rows.append(("content", content))
    if answer["stored_bytes"] is not None:
        stored = f"{size(answer['stored_bytes'])} in packs"
        rows.append(("store", f"{stored}, with snapshots and what is cached of remotes"))
    if answer["loop_lag_s"] >= 1:
        rows.append(("stuck", f"the filesystem last moved {duration(answer['loop_lag_s'])} ago"))
    if answer["commit"]["last_error"] is not None:
        rows.append(("error", f"the last commit failed: {answer['commit']['last_error']}"))
    if answer["damaged_chunks"] or answer["damaged_files"]:
        damage = f"{answer['damaged_files']} files, {answer['damaged_chunks']} chunks"
        rows.append(("damaged", f"{damage}; `orbit-ctl check --data` names them"))
    for each in answer.get("remotes", ()):
        state = f"{each['state']} for {duration(each['since_s'])}"
        rows.append(("remote", f"{each['url']}: {state}: {each['reason']}; {each['cure']}"))
    rows += [("warning", each) for each in answer["warnings"]]
    return "\n".join(f"{plain(name):<9} {plain(text)}" for name, text in rows)


def stats(answer: Answer) -> str:
    """Return the requests by kind, the busiest first, then counters and gauges."""
    lines = [f"{'request':<16} {'count':>12} {'errors':>10} {'total':>10} {'mean':>10}"]
    busiest = sorted(answer["operations"].items(), key=lambda each: -each[1]["seconds"])
    for name, each in busiest:
        if each["count"]:
            mean = f"{each['seconds'] / each['count'] * 1e6:.0f} us"
            total = duration(each["seconds"])
            counts = f"{each['count']:>12} {each['errors']:>10}"
            lines.append(f"{plain(name):<16} {counts} {total:>10} {mean:>10}")
    for title in ("counters", "gauges"):
        lines += ["", title]
        for name, value in sorted(answer[title].items()):
            readable = f"  ({size(value)})" if "bytes" in name and value >= 1024 else ""
            lines.append(f"  {plain(name):<38} {value:>16.15g}{readable}")
    return "\n".join(lines)


def flush(answer: Answer) -> str:
    """Return one line."""
    return f"everything is on the disk (took {duration(answer['seconds'])})"


def check(answer: Answer) -> str:
    """Return every check with its problems, the damaged files, and the verdict."""
    lines = []
    for each in answer["checks"]:
        lines.append(f"{'ok  ' if each['ok'] else 'FAIL'}  {plain(each['name'])}: ")
        lines[-1] += plain(each["promise"])
        lines += [f"        {plain(problem)}" for problem in each["problems"]]
    if answer["damaged_files"]:
        lines += ["", "damaged files, whose content is lost in part:"]
        lines += [f"  {plain(path)}" for path in answer["damaged_files"]]
    failed = sum(not each["ok"] for each in answer["checks"])
    scope = "everything was read back" if answer["data"] else "structure only; --data reads all"
    if answer["ok"]:
        verdict = f"all {len(answer['checks'])} checks passed"
    else:
        verdict = f"{failed} of {len(answer['checks'])} checks failed"
        verdict += f", {len(answer['damaged_files'])} files are damaged"
    lines += ["", f"{verdict} ({scope}; took {duration(answer['seconds'])})"]
    return "\n".join(lines)


def collect(answer: Answer) -> str:
    """Return what was freed, or would be."""
    verb = "would free" if answer["dry_run"] else "freed"
    return (
        f"{verb} {size(answer['bytes_freed'])}:"
        f" {answer['packs_condemned']} packs are mostly unused,"
        f" {size(answer['bytes_copied'])} of them still needed;"
        f" {answer['live_chunks']} chunks in use;"
        f" took {duration(answer['seconds'])}"
    )
