"""Renders runs as Markdown: medians, ratios to each peer, targets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from tests.bench.bench import Group, Row
from tests.bench.record import Run, Sample
from tests.bench.systems import OURS
from tests.bench.targets import TARGETS, Target

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


class Values:
    """One run's samples, by group, row and system."""

    def __init__(self, run: Run) -> None:
        self._by: dict[tuple[str, str, str], dict[int, Sample]] = {}
        for sample in run.samples:
            key = sample.group, sample.row, sample.system
            self._by.setdefault(key, {})[sample.round] = sample

    def samples(self, group: str, row: str, system: str) -> list[Sample]:
        """In the order of the rounds."""
        return list(self._by.get((group, row, system), {}).values())

    def median(self, group: str, row: str, system: str) -> float | None:
        """Of the costs for one unit."""
        found = [sample.cost / sample.amount for sample in self.samples(group, row, system)]
        return statistics.median(found) if found else None

    def ratios(self, group: str, row: str, peer: str, ours: str = OURS) -> list[float]:
        """How many times as fast (or as small) ours is, round by round, sorted."""
        left = self._by.get((group, row, ours), {})
        right = self._by.get((group, row, peer), {})
        return sorted(
            (right[number].cost / right[number].amount) / (mine.cost / mine.amount)
            for number, mine in left.items()
            if number in right and mine.cost > 0
        )


def show(row: Row, sample: Sample | None, cost: float) -> str:
    """A value in the row's unit; `cost` is for one unit of the amount."""
    if row.show == "MB/s":
        return f"{1 / cost / 1e6:,.0f}"
    if row.show == "/s":
        return f"{1 / cost:,.0f}"
    if row.show == "MiB":
        return f"{cost / (1 << 20):,.1f}"
    if row.show == "KiB":
        return f"{cost / 1024:,.1f}"
    if row.show == "%":
        return f"{100 * cost:.2f}"
    if row.show == "ms":
        return f"{1e3 * cost:,.1f}" if cost >= 0.01 else f"{1e3 * cost:.3f}"
    if row.show == "times":
        return f"{cost:,.0f}"
    if row.show == "each":
        return f"{cost:,.2f}"
    amount = 1.0 if sample is None else sample.amount
    seconds = cost * amount
    return f"{seconds:,.2f}" if seconds >= 0.1 else f"{seconds:.3f}"


def table(group: Group, run: Run) -> str:
    """The group's table: one line a row, one column a system, then the ratios."""
    values = Values(run)
    there = {sample.system for sample in run.samples if sample.group == group.key}
    systems = [name for name in group.systems if name in there]
    peers = [name for name in systems if not name.startswith(OURS)] if OURS in systems else []
    head = ["", *systems, *(f"ours : {peer}" for peer in peers)]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in group.rows:
        cells = []
        for system in systems:
            samples = values.samples(group.key, row.key, system)
            median = values.median(group.key, row.key, system)
            cells.append("" if median is None else show(row, samples[0], median))
        cells += [ratio_text(values.ratios(group.key, row.key, peer)) for peer in peers]
        if any(cells):
            unit = "" if row.show == "s" else f", {row.show}"
            lines.append(_line([f"{row.label}{unit or ', s'}", *cells]))
    return "\n".join(lines)


def ratio_text(ratios: Sequence[float]) -> str:
    """The median, and the range where there is one."""
    if not ratios:
        return ""
    middle = f"**{statistics.median(ratios):.2f}**"
    return middle if len(ratios) == 1 else f"{middle} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cpu_table(group: Group, run: Run) -> str:
    """Processor seconds of the daemons, medians; empty where nothing was noted."""
    systems = [name for name in group.systems if name != "ext4"]
    lines = []
    for row in group.rows:
        cells = []
        for system in systems:
            found = [
                sample.cpu_s
                for sample in run.samples
                if (sample.group, sample.row, sample.system) == (group.key, row.key, system)
                and sample.cpu_s is not None
            ]
            cells.append(f"{statistics.median(found):.2f}" if found else "")
        if any(cells):
            lines.append(_line([row.label, *cells]))
    if not lines:
        return ""
    head = ["processor time (a mount's: the daemon's), s", *systems]
    return "\n".join([_line(head), _line(["---"] * len(head)), *lines])


def section(group: Group, run: Run) -> str:
    """A group's heading, circumstances, tables and failures."""
    rounds = 1 + max(
        (sample.round for sample in run.samples if sample.group == group.key), default=0
    )
    quick = ", quick sizes" if run.quick else ""
    told = (
        f"`make bench BENCH={group.key}`{quick}; {run.date}, revision {run.revision}, "
        f"{rounds} round{'s' if rounds > 1 else ''}. {group.note}"
    )
    parts = [f"### {group.title}", told.strip()]
    if any(sample.group == group.key for sample in run.samples):
        parts.append(table(group, run))
        cpu = cpu_table(group, run)
        if cpu:
            parts.append(cpu)
    if group.key in run.facts:
        parts.append(run.facts[group.key])
    parts += [
        f"Not measured further: {failure.system}: {failure.message}"
        for failure in run.failures
        if failure.group == group.key
    ]
    return "\n\n".join(parts)


def latest(groups: Iterable[Group], runs: Sequence[Run]) -> list[tuple[Group, Run]]:
    """For each group its newest run that was not interrupted.

    One of all systems goes before one of some, a full one before a quick one.
    """
    found = []
    for group in groups:
        having = [run for run in runs if group.key in run.finished]
        having.sort(key=lambda run: (not run.partial, not run.quick))
        if having:
            found.append((group, having[-1]))
    return found


def targets_table(chosen: Sequence[tuple[Group, Run]]) -> str:
    """Every target, what was measured, and whether it is met."""
    runs = {group.key: run for group, run in chosen}
    rows = {(group.key, row.key): row for group, _ in chosen for row in group.rows}
    lines = [_line(["work", "target", "measured", "met"]), _line(["---"] * 4)]
    for target in TARGETS:
        run = runs.get(target.group)
        measured = None if run is None else measure(target, Values(run))
        row = rows.get((target.group, target.row))
        label = target.row if row is None else row.label
        if measured is None:
            lines.append(_line([label, target.text(), "not measured", "?"]))
        else:
            met = "yes" if target.met(measured) else "**no**"
            lines.append(_line([label, target.text(), target.show(measured), met]))
    return "\n".join(lines)


def measure(target: Target, values: Values) -> float | None:
    """What is compared with the target's limit."""
    if target.before:
        before = values.median(target.group, target.before, target.ours)
        now = values.median(target.group, target.row, target.ours)
        return None if before is None or now is None else before / now
    if target.peer:
        ratios = values.ratios(target.group, target.row, target.peer, target.ours)
        return statistics.median(ratios) if ratios else None
    cost = values.median(target.group, target.row, target.ours)
    if cost is None:
        return None
    return 1 / cost if target.rate else cost


def render(groups: Iterable[Group], runs: Sequence[Run]) -> str:
    """Everything between the marks in docs/benchmarks.md."""
    chosen = latest(groups, runs)
    if not chosen:
        return "Nothing has been measured."
    newest = chosen[-1][1]
    peers = dict(item for _, run in chosen for item in run.peers.items())
    said = "; ".join(f"{name}: {version}" for name, version in sorted(peers.items()))
    head = f"Machine: {newest.machine}. Disk: {newest.disk}.\n\nPeers: {said}."
    parts = [head, "## Targets", targets_table(chosen), "## Measurements"]
    parts += [section(group, run) for group, run in chosen]
    return "\n\n".join(parts)
