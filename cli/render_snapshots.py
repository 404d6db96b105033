"""What the daemon answers about snapshots, as text for people. Pure: values in, text out."""

from __future__ import annotations

import stat
from datetime import datetime
from typing import Final

from cli.render import Answer, duration, plain, size
from cli.render_projections import counted
from orbit_paths import text_to_path

_NS: Final = 1_000_000_000
_FORMATS: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
}
_SIGNS: Final = {"added": "+", "removed": "-", "content": "M", "metadata": "m"}


def when(time_ns: int) -> str:
    """Return a time as people here say it, to the second."""
    return f"{datetime.fromtimestamp(time_ns // _NS).astimezone():%Y-%m-%d %H:%M:%S}"


def path(text: str) -> str:
    """Return a path of the API, safe on a terminal."""
    return plain(text_to_path(text).decode(errors="backslashreplace"))


class Shown:
    """Renders answers of a daemon whose mount is known."""

    def __init__(self, mount: str) -> None:
        self._mount = mount.rstrip("/")

    def taken(self, answer: Answer) -> str:
        """Return what has been taken, what it cost, and what is not in it."""
        each = answer["snapshot"]
        written = counted(answer["directories_written"], "directory", "directories")
        where = f"{self._mount}/.snapshots/{each['name']}"
        lines = [
            f"{plain(each['name'])}: {_contents(each)} of {path(each['source'])}",
            f"{written} had changed; took {duration(answer['seconds'])}; read it at {plain(where)}",
        ]
        lines += [
            f"left out, because it is a projection: {plain(self._mount)}{path(each)}"
            for each in answer["directories_left_out"]
        ]
        return "\n".join(lines)

    def listed(self, answer: Answer) -> str:
        """Return a line for each snapshot."""
        lines = [self._line(each) for each in answer["snapshots"]]
        return "\n".join(lines) or "no snapshots; `orbit-ctl snapshot create` takes one"

    def _line(self, each: Answer) -> str:
        line = f"{when(each['taken_ns'])}  {plain(each['name'])}  {_contents(each)}"
        line += f"  of {path(each['source'])}"
        if each["tags"]:
            line += f"  [{plain(', '.join(each['tags']))}]"
        if each["expires_ns"] is not None:
            line += f"  until {when(each['expires_ns'])}"
        if each["in_use"]:
            line += f"  projected at {', '.join(path(where) for where in each['in_use'])}"
        return line

    def shown(self, answer: Answer) -> str:
        """Return the snapshot, and what is in it at the path."""
        each = answer["snapshot"]
        lines = [
            plain(each["name"]),
            f"    taken    {when(each['taken_ns'])} on {plain(each['host'])}",
            f"    of       {path(each['source'])}",
            f"    holds    {_contents(each)}",
            f"    id       {each['id']}",
        ]
        if each["tags"]:
            lines.append(f"    tags     {plain(', '.join(each['tags']))}")
        if each["expires_ns"] is not None:
            lines.append(f"    expires  {when(each['expires_ns'])}")
        lines += [f"    used at  {path(where)}" for where in each["in_use"]]
        entry = answer["entry"]
        lines += ["", f"{path(answer['path'])}"]
        entries = answer["entries"] if entry["kind"] == "directory" else [entry]
        lines += [_entry(each) for each in entries]
        return "\n".join(lines)

    def changes(self, answer: Answer) -> str:
        """Return a line for each difference."""
        return "\n".join(_change(each) for each in answer["changes"]) or "no differences"

    def removed(self, answer: Answer) -> str:
        """Return a line for each snapshot."""
        return "\n".join(f"{plain(each['name'])} is removed" for each in answer["snapshots"])

    def pruned(self, answer: Answer) -> str:
        """Return what becomes of each snapshot, and why."""
        goes = "would go" if answer["dry_run"] else "goes"
        lines = [
            f"{'stays' if each['kept'] else goes:<8}  {plain(each['snapshot']['name'])}"
            f" ({when(each['snapshot']['taken_ns'])}): {plain(', '.join(each['reasons']))}"
            for each in answer["verdicts"]
        ]
        lines += [f"not removed: {plain(each)}" for each in answer["failed"]]
        return "\n".join(lines) or "no snapshots"


def _contents(each: Answer) -> str:
    return f"{counted(each['files'], 'file')}, {size(each['bytes'])}"


def _entry(each: Answer) -> str:
    mode = _FORMATS[each["kind"]] | (each["mode"] or 0)
    owner = "?" if each["uid"] is None else f"{each['uid']}:{each['gid']}"
    time = "" if each["mtime_ns"] is None else when(each["mtime_ns"])
    line = f"{stat.filemode(mode)} {owner:>11} {size(each['bytes']):>10} {time:>19} "
    line += path(each["name"])
    if each["target"] is not None:
        line += f" -> {path(each['target'])}"
    return line


def _change(each: Answer) -> str:
    old, new = each["old"], each["new"]
    line = f"{_SIGNS[each['kind']]} {path(each['path'])}"
    either = new or old
    if either["kind"] == "directory":
        line += "/"
    elif each["kind"] == "content" and either["kind"] == "file":
        line += f" ({size(old['bytes'])} -> {size(new['bytes'])})"
    return line
