"""The numbers in docs/benchmarks.md follow from the samples."""

import pytest

from tests.bench import report
from tests.bench.bench import Bench, Group, Row
from tests.bench.catalogue import GROUPS
from tests.bench.record import Failure, Run, Sample, load_runs
from tests.bench.systems import OURS
from tests.bench.targets import TARGETS, Target


def _nothing(bench: Bench) -> None:
    del bench


GROUP = Group(
    "g", "A title", (Row("r", "work"), Row("rate", "flow", "MB/s")), _nothing, ("p", OURS)
)


def _run(*samples: Sample, quick: bool = False, date: str = "today") -> Run:
    done = ["g"]
    return Run(
        date, "command", quick, "abc", "machine", "disk", finished=done, samples=list(samples)
    )


def _costs(row: str, system: str, *costs: float, amount: float = 1.0) -> list[Sample]:
    return [
        Sample("g", row, system, number, cost, amount, 0.5) for number, cost in enumerate(costs)
    ]


def test_ratios_are_taken_within_rounds_and_say_how_much_better_ours_is():
    run = _run(*_costs("r", OURS, 1.0, 10.0, 2.0), *_costs("r", "p", 3.0, 10.0, 4.0))
    assert report.Values(run).ratios("g", "r", "p") == [1.0, 2.0, 3.0]


def test_a_round_that_only_one_of_them_has_finished_gives_no_ratio():
    run = _run(*_costs("r", OURS, 1.0), *_costs("r", "p", 3.0, 10.0))
    assert report.Values(run).ratios("g", "r", "p") == [3.0]


def test_table_shows_medians_in_the_unit_of_the_row():
    run = _run(
        *_costs("r", OURS, 1.0, 9.0, 2.0),
        *_costs("rate", OURS, 0.5, amount=1e8),
        *_costs("rate", "p", 1.0, amount=1e8),
    )
    lines = report.table(GROUP, run).splitlines()
    assert lines[0] == f"|  | p | {OURS} | ours : p |"
    assert lines[2] == "| work, s |  | 2.00 |  |"
    assert lines[3] == "| flow, MB/s | 100 | 200 | **2.00** |"


@pytest.mark.parametrize(
    ("show", "cost", "text"),
    [
        ("ms", 0.0113, "11.3"),
        ("ms", 0.00007, "0.070"),
        ("times", 11.0, "11"),
        ("each", 1.018, "1.02"),
        ("MiB", 0.0, "0.0"),
    ],
)
def test_latencies_and_counts_are_shown_with_the_digits_that_tell(show, cost, text):
    assert report.show(Row("r", "work", show), None, cost) == text


def test_nothing_moved_meets_a_target_of_nothing():
    target = Target("g", "r", 0.0, unit="MiB")
    assert target.met(report.measure(target, report.Values(_run(*_costs("r", OURS, 0.0)))))
    assert not target.met(report.measure(target, report.Values(_run(*_costs("r", OURS, 1.0)))))


def test_failures_are_told():
    run = _run(*_costs("r", OURS, 1.0))
    run.failures.append(Failure("g", "p", "find: ended with 1 … Too many open files"))
    text = report.section(GROUP, run)
    assert "Not measured further: p: find: ended with 1 … Too many open files" in text


@pytest.mark.parametrize(
    ("target", "costs", "met"),
    [
        (Target("g", "r", 0.7, "p"), (10.0, 7.0), True),
        (Target("g", "r", 0.7, "p"), (10.1, 7.0), False),
        (Target("g", "rate", 1.0, before="r"), (7.0, 7.0), True),
        (Target("g", "rate", 1.0, before="r"), (6.9, 7.0), False),
        (Target("g", "r", 1.0), (1.0, 7.0), True),
        (Target("g", "r", 1.0), (1.1, 7.0), False),
        (Target("g", "r", 100.0, rate=True), (0.01, 7.0), True),
        (Target("g", "r", 100.0, rate=True), (0.011, 7.0), False),
    ],
)
def test_targets_are_met_or_not(target, costs, met):
    ours, peer = costs
    run = _run(*_costs("r", OURS, ours), *_costs("r", "p", peer), *_costs("rate", OURS, peer))
    measured = report.measure(target, report.Values(run))
    assert measured is not None
    assert target.met(measured) == met


def test_what_was_not_measured_has_not_met_its_target():
    assert report.measure(Target("g", "r", 1.0), report.Values(_run())) is None


def test_targets_name_rows_and_systems_that_are_measured():
    for target in TARGETS:
        group = GROUPS[target.group]
        assert target.row in {row.key for row in group.rows}
        assert {target.ours, target.peer or target.ours} <= set(group.systems)


def test_a_full_run_is_preferred_to_a_later_quick_one():
    old, full = _run(*_costs("r", OURS, 1.0)), _run(*_costs("r", OURS, 2.0))
    quick = _run(*_costs("r", OURS, 3.0), quick=True)
    assert report.latest([GROUP], [old, full, quick]) == [(GROUP, full)]
    assert report.latest([GROUP], [quick]) == [(GROUP, quick)]
    partial = _run(*_costs("r", OURS, 4.0))
    partial.partial = True
    assert report.latest([GROUP], [quick, full, partial]) == [(GROUP, full)]


def test_an_interrupted_group_is_not_shown():
    cut_short = _run(*_costs("r", OURS, 1.0))
    cut_short.finished.clear()
    assert report.latest([GROUP], [cut_short]) == []


def test_runs_come_back_as_they_were_kept(tmp_path):
    run = _run(*_costs("r", OURS, 1.0))
    run.failures.append(Failure("g", "p", "why"))
    run.append_to(tmp_path / "results")
    run.append_to(tmp_path / "results")
    assert list(load_runs(tmp_path / "results")) == [run, run]
