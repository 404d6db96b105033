"""What the daemon answers about projections, as text for people. Pure: values in, text out."""

from __future__ import annotations

from cli.render import Answer, duration, plain, size
from orbit_paths import text_to_path


class Shown:
    """Renders answers of a daemon whose mount is known, so that paths are shown whole."""

    def __init__(self, mount: str) -> None:
        self._mount = mount.rstrip("/")

    def path(self, text: str) -> str:
        """Return a path of the API as the shell would see it, safe on a terminal."""
        path = text_to_path(text).decode(errors="backslashreplace")
        return plain((self._mount + path).rstrip("/") or "/")

    def project(self, answer: Answer) -> str:
        """Return what has been attached, and what is wrong with it already."""
        ttl = duration(answer["ttl_s"])
        lines = [f"{plain(answer['url'])} is at {self.path(answer['path'])} ({answer['mode']},"]
        lines[0] += f" listings are at most {ttl} old)"
        if answer["state"] != "ok":
            lines.append(f"warning: {plain(answer['reason'])}")
        return "\n".join(lines)

    def unproject(self, answer: Answer) -> str:
        """Return one line."""
        return f"{self.path(answer['path'])} is detached from {plain(answer['url'])}"

    def projections(self, answer: Answer) -> str:
        """Return some lines for each projection."""
        return "\n".join(self._projection(each) for each in answer["projections"]) or (
            "no projections; `orbit-ctl project URL PATH` makes one"
        )

    def _projection(self, each: Answer) -> str:
        listed = each["listed_age_s"]
        age = "not listed yet" if listed is None else f"listed {duration(listed)} ago"
        state = each["state"]
        if state != "ok":
            state += f" for {duration(each['since_s'])}: {plain(each['reason'])}"
        lines = [
            f"{self.path(each['path'])}",
            f"    from     {plain(each['url'])}",
            f"    mode     {each['mode']}, attached {duration(each['age_s'])} ago",
            f"    listings {age}, renewed after {duration(each['ttl_s'])}",
            f"    blocks   of {size(each['block_bytes'])}",
            f"    state    {state}",
        ]
        if each["cure"]:
            lines.append(f"    cure     {plain(each['cure'])}")
        if each["options"]:
            options = " ".join(f"{name}={value}" for name, value in each["options"].items())
            lines.append(f"    options  {plain(options)}")
        if each["left_out"]:
            lines.append(
                f"    left out {counted(each['left_out'], 'entry', 'entries')} of the listings"
            )
        if each["conflicts"]:
            lines.append(
                f"    conflict {counted(each['conflicts'], 'file')} changed here and at the remote:"
                " see orbit-ctl diff"
            )
        lines += _pushed(each)
        return "\n".join(lines)

    def refresh(self, answer: Answer) -> str:
        """Return one line."""
        what = "the file"
        if answer["directories"]:
            what = counted(answer["directories"], "directory", "directories")
        if answer["waiting"]:
            return f"{what} will be asked for again: {plain(answer['waiting'])}"
        return f"{what} renewed"

    def residency(self, answer: Answer) -> str:
        """Return a table, a line for each path."""
        lines = [
            f"{'files':>9} {'size':>9} {'local':>9} {'share':>6} {'pinned':>9} {'dirty':>9}  path"
        ]
        for each in answer["paths"]:
            share = _share(each["local_bytes"] / each["bytes"]) if each["bytes"] else "-"
            lines.append(
                f"{each['files']:>9} {size(each['bytes']):>9} {size(each['local_bytes']):>9}"
                f" {share:>6} {size(each['pinned_bytes']):>9}"
                f" {size(each['dirty_bytes']):>9}  {self.path(each['path'])}"
            )
            if each["unlisted_directories"]:
                lines.append(
                    f"{'':>9} not listed yet:"
                    f" {counted(each['unlisted_directories'], 'directory', 'directories')}"
                )
        return "\n".join(lines)

    def evict(self, answer: Answer) -> str:
        """Return one line."""
        text = f"evicted {counted(answer['blocks'], 'block')} ({size(answer['bytes'])}) of"
        text += f" {counted(answer['files'], 'file')}"
        if answer["pinned_files"]:
            text += f"; {counted(answer['pinned_files'], 'pinned file')} left alone"
        return text

    @staticmethod
    def unpin(answer: Answer) -> str:
        """Return one line."""
        return f"{counted(answer['files'], 'file')} may be evicted again"

    def change(self, each: Answer) -> str:
        """Return the line of one change."""
        line = f"{each['kind']:<10} {self.path(each['path'])}"
        line += "/" if each["directory"] else ""
        if each["source"] is not None:
            line += f"  (from {self.path(each['source'])})"
        if each["kind"] == "renamed" and each["written"]:
            line += "  (and modified)"
        if each["conflict"]:
            line += "  (conflict: the remote has changed it, too)"
        return line

    def diff(self, answer: Answer) -> str:
        """Return a line for each change."""
        return "\n".join(map(self.change, answer["changes"])) or "no changes"

    @staticmethod
    def revert(answer: Answer) -> str:
        """Return what was dropped."""
        text = f"dropped {counted(answer['changes'], 'change')}"
        if answer["waiting"]:
            text += f"; what the remote has comes back later: {plain(answer['waiting'])}"
        return text

    def work(self, each: Answer) -> str:
        """Return how a warm-up or pin stands or ended, with its last errors."""
        lines = [f"{each['kind']} {each['id']}: {each['state']}, {progress(each)}"]
        if each["reason"]:
            lines.append(f"  {plain(each['reason'])}")
        if each["errors"]:
            lines.append(f"  {counted(each['errors'], 'error')}, the last ones:")
            lines += [
                f"  {self.path(error['path'])}: {plain(error['reason'])}"
                for error in each["last_errors"]
            ]
        return "\n".join(lines)

    def works(self, answer: Answer) -> str:
        """Return some lines for each work."""
        return "\n".join(map(self.work, answer["works"])) or "no works"


def _pushed(each: Answer) -> list[str]:
    """What is not at the remote yet, and why."""
    lines = []
    if each.get("unpushed"):
        unpushed = counted(each["unpushed"], "change")
        lines.append(f"    unpushed {unpushed}, {size(each['unpushed_bytes'])}")
    if each.get("push_error"):
        lines.append(f"    push     {plain(each['push_error'])}")
    return lines


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def progress(each: Answer) -> str:
    """Return the progress of a work on one line."""
    more = "" if each["listed"] else "+"
    text = f"{each['files_done']}/{each['files']}{more} files,"
    text += f" {size(each['bytes_done'])} of {size(each['bytes'])}{more} here"
    if each["bytes"]:
        text += f" ({_share(each['bytes_done'] / each['bytes'])})"
    text += f", {size(each['bytes_fetched'])} fetched in {duration(each['seconds'])}"
    if each["errors"]:
        text += f", {counted(each['errors'], 'error')}"
    return text


def _share(share: float) -> str:
    """Return a share that says 100 % for all of it only, and 0 % for none of it only."""
    percent = int(share * 100)
    if percent == 0 and share > 0:
        return "<1 %"
    return f"{percent} %"
