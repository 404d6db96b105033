"""Reports of jobs as people read them."""

from cli.job_render import report_lines
from syncer.events import FAILURES_KEPT, Report


def told(report):
    return [line.strip() for line in report_lines(report.as_json())]


def failed(*failures):
    report = Report("copy", "/a", "/b", outcome="partly")
    for path, error in failures:
        report.fail(path, error)
    return report


def test_many_files_with_one_reason_have_one_line():
    full = "the destination is full"
    report = failed(("x", "denied"), *((f"d/{n}", full) for n in range(4_213)), ("y", "denied"))
    assert told(report)[1:] == [
        "4215 failed:",
        "x: denied",
        "the destination is full (4,213 files; the first: d/0)",
        "… and 1 more",  # `y` came when no more were kept
    ]
    assert len(report.as_json()["failures"]) == FAILURES_KEPT
    assert report.as_json()["reasons"] == {"denied": 2, full: 4_213}


def test_few_files_with_one_reason_are_named():
    report = failed(("x", "denied"), ("y", "denied"), ("z", "denied"), ("", "no such server"))
    assert told(report)[2:] == ["x: denied", "y: denied", "z: denied", "no such server"]


def test_names_that_differ_are_always_named():
    report = failed(*((f"{n}", "content differs") for n in range(30)))
    report.verb, report.differences = "verify", 30
    lines = told(report)
    assert lines[2:4] == ["0: content differs", "1: content differs"]
    assert lines[-1] == "… and 10 more"


def test_reports_of_older_versions_count_what_they_kept():
    report = failed(*((f"{n}", "denied") for n in range(5))).as_json()
    del report["reasons"]
    assert list(report_lines(report))[-1].strip() == "denied (5 files; the first: 0)"
