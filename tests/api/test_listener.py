"""The socket: private from birth, one daemon's, and never taken from a live one."""

import os
import socket
import stat
import struct
import subprocess
import sys

import pytest

from ghostd.listener import ControlSocket, SocketUnusable, peer_allowed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ghostd.sock"


def test_it_is_private_whatever_the_umask(path):
    before = os.umask(0)
    try:
        control = ControlSocket(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    control.close()
    assert not path.exists()


def test_a_dead_daemons_socket_is_replaced(path):
    path.parent.mkdir()
    code = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.is_socket()
    ControlSocket(path).close()


def test_a_live_one_is_refused(path):
    first = ControlSocket(path)
    with pytest.raises(SocketUnusable, match="another daemon listens"):
        ControlSocket(path)
    assert path.is_socket()
    first.close()
    ControlSocket(path).close()


def test_a_foreign_listener_is_refused_too(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(SocketUnusable, match="another daemon listens"):
            ControlSocket(path)


def test_a_file_of_that_name_is_left_alone(path):
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(SocketUnusable, match="not a socket"):
        ControlSocket(path)
    assert path.read_text() == "precious"


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(SocketUnusable, match="too long"):
        ControlSocket(tmp_path / ("x" * 120))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SocketUnusable, match="--socket"):
        ControlSocket(tmp_path / "file" / "sock")


def test_closing_leaves_a_successors_socket(path):
    control = ControlSocket(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        control.close()
        assert path.is_socket()


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (os.geteuid(), True), (54321, False)])
def test_only_this_user_and_root_are_heard(uid, allowed):
    assert peer_allowed(lambda *_: struct.pack("3i", 1, uid, uid)) is allowed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_a_stranger_who_got_past_the_mode_is_not_answered(server, socket_path):
    # The socket was opened to the world by somebody; the daemon still looks at the peer.
    socket_path.parent.chmod(0o711)
    socket_path.chmod(0o666)
    code = (
        "import os,socket,sys\n"
        "os.chdir(sys.argv[1]); os.setuid(54321)\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[2])\n"
        "try:\n"
        "  s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "  data=s.recv(100)\n"
        "except (ConnectionResetError, BrokenPipeError): data=b''\n"
        "print(len(data))\n"
    )
    command = [sys.executable, "-c", code, socket_path.parent, socket_path.name]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "0\n"
