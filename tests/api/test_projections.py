"""The calls about projections: what they pass on, what they answer, and how they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import OrbitError, StorageFull
from ghostd import errors
from ghostd.api_problems import answer_of
from ghostd.projection_facade import Attach
from ghostd.projections import LocalChanges, NoProjection, ProjectionRefused
from ghostd.warming import TooManyWorks
from orbit_paths import path_to_text, text_to_path
from syncer.remotes import errors as remotes
from tests.api.conftest import client_for
from tests.api.double_projections import PROBLEM


def test_project_passes_everything_on(client, control):
    body = {
        "url": "s3://b/p",
        "path": "/x%FF",
        "mode": "cow",
        "ttl_s": 5,
        "block_bytes": 1 << 17,
        "options": {"region": "x"},
    }
    answer = client.post("/v1/project", json=body)
    assert (answer.status_code, answer.json()["path"]) == (201, "/x%FF")
    assert control.calls == [
        ("project", Attach("s3://b/p", "/x%FF", "cow", 5.0, 1 << 17, {"region": "x"}))
    ]
    client.post("/v1/project", json={"url": "s3://b/p", "path": "/y"})
    assert control.calls[1] == ("project", Attach("s3://b/p", "/y"))


def test_projections_and_their_states(client):
    first, second = client.get("/v1/projections").json()["projections"]
    assert (first["state"], first["since_s"]) == ("ok", None)
    assert (second["state"], second["since_s"], second["path"]) == ("failing", 300.0, "/caf%E9")


@pytest.mark.parametrize(
    ("url", "body", "call"),
    [
        ("/v1/unproject", {"path": "/x"}, ("unproject", "/x", False)),
        ("/v1/unproject", {"path": "/x", "force": True}, ("unproject", "/x", True)),
        ("/v1/refresh", {"path": "/x", "recursive": True}, ("refresh", "/x", True)),
        ("/v1/residency", {"paths": ["/x", "/y"]}, ("residency", ["/x", "/y"])),
        ("/v1/warm", {"paths": ["/x"]}, ("warm", ["/x"])),
        ("/v1/pin", {"paths": ["/x"]}, ("pin", ["/x"])),
        ("/v1/unpin", {"paths": ["/x"]}, ("unpin", ["/x"])),
        ("/v1/evict", {"paths": ["/x"]}, ("evict", ["/x"])),
        ("/v1/diff", {"path": "/x"}, ("diff", "/x", None, 1_000)),
        ("/v1/diff", {"path": "/x", "cursor": "1:-", "limit": 5}, ("diff", "/x", "1:-", 5)),
        ("/v1/revert", {"path": "/x"}, ("revert", "/x")),
    ],
)
def test_calls_pass_their_arguments_on(client, control, url, body, call):
    assert client.post(url, json=body).status_code in {200, 202}
    assert control.calls == [call]


def test_works_are_followed_and_stopped_by_their_number(client, control):
    assert client.post("/v1/warm", json={"paths": ["/x"]}).json()["id"] == 3
    assert client.get("/v1/warm/3").json()["state"] == "running"
    assert client.get("/v1/warm/3").json()["state"] == "done"
    assert [each["id"] for each in client.get("/v1/warm").json()["works"]] == [3, 2]
    assert client.delete("/v1/warm/3").json()["state"] == "stopped"
    assert control.calls[-1] == ("stop_work", 3)
    for answer in (client.get("/v1/warm/9"), client.delete("/v1/warm/9")):
        assert (answer.status_code, answer.json()["error"]) == (404, "no_work")
        assert "orbit-ctl works" in answer.json()["hint"]


def test_progress_answers_while_calls_are_stuck(client, control, socket_path):
    control.gate.clear()
    for _ in range(3):
        with pytest.raises(Exception, match="timed out"), client_for(socket_path) as leaver:
            leaver.post("/v1/evict", json={"paths": ["/x"]}, timeout=0.2)
    assert control.entered.acquire(timeout=20)
    assert client.get("/v1/warm/3").status_code == 200
    control.gate.set()


def test_status_and_metrics_name_remotes_in_trouble(client, control):
    assert client.get("/v1/status").json()["remotes"] == []
    control.projections.wrong = (PROBLEM, PROBLEM)
    control.current = control.with_remotes()
    assert client.get("/v1/status").json()["remotes"][0]["reason"] == "connection refused"
    lines = client.get("/metrics").text.splitlines()
    name = 'orbit_remote_problem_seconds{state="failing",url="sftp://host/tree"} 300.0'
    assert lines.count(name) == 1


@pytest.mark.parametrize(
    ("url", "body", "word"),
    [
        ("/v1/project", {"url": "s3://b", "path": "/x", "mode": "write"}, "mode"),
        ("/v1/project", {"path": "/x"}, "url"),
        ("/v1/project", {"url": "s3://b", "path": "/x", "password": "x"}, "password"),
        ("/v1/warm", {"paths": []}, "paths"),
        ("/v1/warm", {"paths": ["/x"] * 1_001}, "paths"),
        ("/v1/diff", {"path": "/x", "limit": 0}, "limit"),
        ("/v1/revert", {}, "path"),
    ],
)
def test_bad_calls_are_refused(client, control, url, body, word):
    answer = client.post(url, json=body)
    assert answer.status_code == 422
    assert word in answer.json()["message"]
    assert control.calls == []


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (remotes.Denied("no"), 403, "denied"),
        (remotes.Missing("no"), 404, "missing"),
        (remotes.BadUrl("no"), 422, "bad_url"),
        (remotes.Unreachable("no"), 504, "unreachable"),
        (remotes.Busy("no"), 503, "remote_busy"),
        (remotes.Garbled("no"), 502, "garbled"),
        (remotes.Unsupported("no"), 422, "unsupported"),
        (remotes.RemoteError("no"), 502, "remote_failed"),
        (NoProjection("no"), 404, "no_projection"),
        (LocalChanges("no"), 409, "local_changes"),
        (ProjectionRefused("no"), 422, "projection_refused"),
        (TooManyWorks("no"), 409, "too_many_works"),
        (errors.NotFound("no"), 404, "not_found"),
        (errors.AlreadyExists("no"), 409, "already_exists"),
        (errors.NotADirectory("no"), 409, "not_a_directory"),
        (StorageFull("no"), 507, "storage_full"),
    ],
)
def test_errors_have_a_status_and_a_word(client, control, error, status, word):
    control.error = error
    answer = client.post("/v1/refresh", json={"path": "/x"})
    assert (answer.status_code, answer.json()["error"]) == (status, word)
    assert answer.json()["message"] == "no"


def test_a_daemon_without_projections_says_so(client, control):
    control.projections = None
    for answer in (client.get("/v1/projections"), client.post("/v1/evict", json={"paths": ["/"]})):
        assert (answer.status_code, answer.json()["error"]) == (409, "projections_absent")


def test_every_error_of_a_remote_has_an_answer():
    for kind in vars(remotes).values():
        if isinstance(kind, type) and issubclass(kind, OrbitError):
            answer = answer_of(kind("x"))
            assert 400 <= answer.status < 600
            assert answer.word


@given(st.binary().filter(lambda path: b"\0" not in path))
def test_paths_come_back_whatever_their_bytes(path):
    text = path_to_text(path)
    text.encode()  # JSON can carry it
    assert text_to_path(text) == path


def test_how_paths_look():
    assert path_to_text("/café/100%".encode() + b"\xff") == "/café/100%25%FF"
    assert text_to_path("/a%20b/%zz%") == b"/a b/%zz%"
