import httpx
import pytest

from ghostd.api import ApiServer
from tests.api.double import DoubleControl


@pytest.fixture
def control():
    return DoubleControl()


@pytest.fixture
def server(control, tmp_path):
    server = ApiServer(control, tmp_path / "run" / "ghostd.sock")
    server.start()
    yield server
    control.gate.set()
    assert server.stop()


@pytest.fixture
def socket_path(server, tmp_path):
    return tmp_path / "run" / "ghostd.sock"


def client_for(path) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(path))
    return httpx.Client(transport=transport, base_url="http://ghostd", timeout=20)


@pytest.fixture
def client(socket_path):
    with client_for(socket_path) as client:
        yield client
