"""While a call hangs: others answer, equal calls share it, leaving clients leave nothing."""

import concurrent.futures as cf
import socket
import threading

import httpx
import pytest

from ghostd import api_gate
from ghostd.api import ApiServer
from ghostd.api_gate import BURST_MAX, POSTS_MAX, REQUESTS_PER_S_MAX, Bucket
from tests.api.conftest import client_for


@pytest.fixture
def pool():
    with cf.ThreadPoolExecutor(40) as pool:
        yield pool


def post(path, url, **json):
    with client_for(path) as client:
        return client.post(url, json=json)


def test_status_answers_while_everything_else_is_stuck(client, control, socket_path, pool):
    control.gate.clear()
    stuck = [pool.submit(post, socket_path, "/v1/flush") for _ in range(POSTS_MAX - 1)]
    stuck.append(pool.submit(post, socket_path, "/v1/check"))
    assert control.entered.acquire(timeout=20)
    assert client.get("/v1/status", timeout=1).status_code == 200
    assert "orbit_ready" in client.get("/metrics", timeout=5).text
    control.gate.set()
    assert {each.result().status_code for each in stuck} == {200}


def test_too_many_waiting_calls_are_refused(client, control, socket_path, pool):
    control.gate.clear()
    waiting = [pool.submit(post, socket_path, "/v1/check") for _ in range(POSTS_MAX + 4)]
    refused = [f.result() for f in cf.as_completed(waiting) if _last_refusal(f, waiting, control)]
    codes = sorted(each.result().status_code for each in waiting)
    assert codes == [200] * POSTS_MAX + [429] * 4
    assert len(refused) <= len(waiting)
    assert len(control.calls) == 1  # all of them shared one run


def _last_refusal(future, waiting, control):
    """Opens the gate once the four surplus calls have been refused."""
    if sum(each.done() and each.result().status_code == 429 for each in waiting) == 4:
        control.gate.set()
    return future.result().status_code == 429


def test_equal_checks_share_one_run_and_others_are_refused(client, control, socket_path, pool):
    control.gate.clear()
    first = pool.submit(post, socket_path, "/v1/check", data=True)
    assert control.entered.acquire(timeout=20)
    other = client.post("/v1/check", json={"data": False})
    assert (other.status_code, other.json()["error"]) == (409, "busy")
    impatient = client.post("/v1/check", json={"data": True, "timeout_s": 0.05})
    assert (impatient.status_code, impatient.json()["error"]) == (504, "timeout")
    control.gate.set()
    assert first.result().json()["data"] is True
    assert control.calls == [("check", True)]
    assert client.post("/v1/check", json={"data": False}).status_code == 200


def test_a_client_that_goes_away_frees_its_slot(client, control, socket_path):
    control.gate.clear()
    request = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    for _ in range(3 * POSTS_MAX):
        with socket.socket(socket.AF_UNIX) as leaver:
            leaver.connect(str(socket_path))
            leaver.sendall(request)
    assert control.entered.acquire(timeout=20)
    # The slots come back as the server notices; a busy server says 429 until then.
    answers = (post(socket_path, "/v1/check", timeout_s=0.05) for _ in range(1000))
    assert any(answer.status_code == 504 for answer in answers)
    assert control.calls == [("check", False)]


def test_a_flush_that_hangs_times_out(client, control):
    control.gate.clear()
    answer = client.post("/v1/flush", json={"timeout_s": 0.05})
    assert (answer.status_code, answer.json()["error"]) == (504, "timeout")


def test_rubbish_on_the_socket_hurts_nobody(client, socket_path):
    for rubbish in (
        b"\x00" * 100_000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as vandal:
            vandal.connect(str(socket_path))
            try:
                vandal.sendall(rubbish)
                vandal.shutdown(socket.SHUT_WR)
                vandal.recv(4096)
            except (BrokenPipeError, ConnectionResetError):
                pass  # thrown out already
    assert client.get("/v1/status").status_code == 200


def test_stop_ends_in_time_while_a_call_is_stuck(control, server, socket_path, pool):
    control.gate.clear()
    stuck = pool.submit(post, socket_path, "/v1/check")
    assert control.entered.acquire(timeout=20)
    assert server.stop()
    assert not socket_path.exists()
    with pytest.raises(httpx.HTTPError):
        stuck.result()
    control.gate.set()


def test_stop_at_once_after_start(control, tmp_path):
    server = ApiServer(control, tmp_path / "s")
    server.start()
    stopped: list[bool] = []
    thread = threading.Thread(target=lambda: stopped.append(server.stop(20)))
    thread.start()
    thread.join()
    assert stopped == [True]
    assert not (tmp_path / "s").exists()


def test_the_bucket_gives_a_burst_and_then_the_rate():
    bucket = Bucket(REQUESTS_PER_S_MAX, BURST_MAX, now_s=0.0)
    assert sum(bucket.take(0.0) for _ in range(1000)) == BURST_MAX
    assert sum(bucket.take(0.5) for _ in range(1000)) == REQUESTS_PER_S_MAX / 2
    assert sum(bucket.take(100.0) for _ in range(1000)) == BURST_MAX


def test_the_rate_limit_answers_with_a_problem(control, tmp_path, monkeypatch):
    # However slow this machine is: nothing is earned back meanwhile.
    monkeypatch.setattr(api_gate, "REQUESTS_PER_S_MAX", 1e-9)
    monkeypatch.setattr(api_gate, "BURST_MAX", 5)
    server = ApiServer(control, tmp_path / "s")
    server.start()
    try:
        with client_for(tmp_path / "s") as client:
            answers = [client.get("/v1/status") for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
        assert answers[-1].json()["error"] == "too_many_requests"
    finally:
        assert server.stop()
