"""Calls of the system that Python has no name for."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAPS = """
import ctypes, sys, threading
from syncer import linux

if sys.argv[1] == "few":
    linux.few_heaps()
libc = ctypes.CDLL(None)
meet = threading.Barrier(9)

def work():
    kept = bytearray(50_000)
    meet.wait()
    meet.wait()
    del kept

for _ in range(8):
    threading.Thread(target=work).start()
meet.wait()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
meet.wait()
"""


@pytest.mark.parametrize("few", [True, False])
def test_threads_share_few_heaps(few: bool) -> None:
    words = [sys.executable, "-c", _HEAPS, "few" if few else "many"]
    done = subprocess.run(words, capture_output=True, check=True)
    assert (done.stdout.count(b"<heap nr=") <= 2) == few
