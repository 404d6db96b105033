"""Each call: what it passes on, what it answers, and how it refuses."""

import pytest

from blockstore.errors import OrbitError, StorageFull
from ghostd.facade import CommitStatus, printable_path
from tests.api.double import DAMAGED, STATUS


def test_status_carries_every_field(client):
    answer = client.get("/v1/status")
    assert answer.status_code == 200
    body = answer.json()
    assert body["state"] == "ready"
    assert body["mount"] == "/mnt/orbit"
    assert body["dirty_bytes"] == 4096
    assert body["commit"]["count"] == 7
    assert body["commit"]["last_error"] is None
    assert body.keys() == {*STATUS.__slots__}
    assert body["commit"].keys() == {*CommitStatus.__slots__}


def test_stats(client):
    assert client.get("/v1/stats").json() == {
        "operations": {"read": {"count": 5, "errors": 1, "seconds": 0.25}},
        "counters": {"cache_hits": 42},
        "gauges": {"cache_bytes": 1024},
    }


def test_metrics_are_prometheus_text(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'orbit_fuse_requests_total{operation="read"} 5.0' in lines
    assert 'orbit_fuse_errors_total{operation="read"} 1.0' in lines
    assert "orbit_cache_hits_total 42.0" in lines
    assert "orbit_cache_bytes 1024.0" in lines
    assert "orbit_ready 1.0" in lines
    assert "orbit_commits_total 7.0" in lines


def test_flush_passes_its_timeout_on(client, control):
    assert client.post("/v1/flush", json={"timeout_s": 5}).json() == {"seconds": 0.5}
    assert client.post("/v1/flush").json() == {"seconds": 0.5}
    assert control.calls == [("flush", 5.0), ("flush", 60.0)]


def test_check_reports_damage(client, control):
    control.report = DAMAGED
    body = client.post("/v1/check", json={"data": True}).json()
    assert body["ok"] is False
    assert body["data"] is True
    assert body["damaged_files"] == list(DAMAGED.damaged_files)
    assert body["checks"][1]["problems"] == ["abc: pack 3"]
    assert control.calls == [("check", True)]


def test_collect_passes_its_arguments_on(client, control):
    assert client.post("/v1/collect", json={"dry_run": True}).json()["dry_run"] is True
    assert client.post("/v1/collect", json={"waste_max": 0.1}).json()["packs_removed"] == 1
    assert control.calls == [("collect", True, None), ("collect", False, 0.1)]


def test_stop_answers_before_the_end(client, control):
    answer = client.post("/v1/stop")
    assert (answer.status_code, answer.json()) == (202, {"stopping": True})
    assert client.get("/v1/status").json()["state"] == "stopping"


def test_openapi_describes_every_call(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/status",
        "/v1/stats",
        "/metrics",
        "/v1/flush",
        "/v1/check",
        "/v1/collect",
        "/v1/stop",
        "/v1/audit",
        "/v1/audit/verify",
        "/v1/jobs",
        "/v1/jobs/{number}",
        "/v1/jobs/{number}/log",
        "/v1/jobs/{number}/failures",
        "/v1/jobs/{number}/set",
        "/v1/jobs/{number}/want",
        "/v1/jobs/{number}/retry",
        "/v1/projections",
        "/v1/project",
        "/v1/unproject",
        "/v1/refresh",
        "/v1/residency",
        "/v1/warm",
        "/v1/warm/{number}",
        "/v1/pin",
        "/v1/unpin",
        "/v1/evict",
        "/v1/diff",
        "/v1/revert",
        "/v1/snapshots",
        "/v1/snapshots/show",
        "/v1/snapshots/diff",
        "/v1/snapshots/remove",
        "/v1/snapshots/prune",
    }


class Unforeseen(OrbitError):
    pass


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (StorageFull("the disk of /var/lib/orbit is full"), 507, "storage_full"),
        (Unforeseen("the moon is in the way"), 500, "unforeseen"),
        (TimeoutError("the commit hangs"), 504, "timeout"),
        (RuntimeError("a bug"), 500, "internal"),
    ],
)
def test_errors_are_problems(client, control, error, status, word):
    control.error = error
    answer = client.post("/v1/flush")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"error", "message", "hint"}
    assert body["error"] == word
    assert str(error) in body["message"]
    # The server is still there.
    control.error = None
    assert client.get("/v1/status").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "json", "status", "word"),
    [
        ("GET", "/v2/status", None, 404, "not_found"),
        ("POST", "/v1/status", None, 405, "method_not_allowed"),
        ("POST", "/v1/flush", {"timeout_s": -1}, 422, "timeout_s"),
        ("POST", "/v1/flush", {"timeout": 1}, 422, "timeout"),
        ("POST", "/v1/collect", {"waste_max": 2}, 422, "waste_max"),
        ("POST", "/v1/check", [], 422, "body"),
    ],
)
def test_bad_requests_are_problems(client, control, method, path, json, status, word):
    answer = client.request(method, path, json=json)
    assert answer.status_code == status
    assert word in answer.text
    assert set(answer.json()) == {"error", "message", "hint"}
    assert control.calls == []


def test_a_body_that_is_too_large_is_refused(client, control):
    answer = client.post("/v1/check", content=b"x" * 70_000)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    assert control.calls == []


def test_paths_of_any_bytes_fit_into_json():
    path = printable_path(b"/caf\xe9/\xff\xc3\xa9")
    assert path == "/caf\\xe9/\\xffé"
    path.encode()
