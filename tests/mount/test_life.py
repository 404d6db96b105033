"""The daemon's life as others see it: starting, refusing, stopping, being killed."""

import os

import pytest

from tests.mount.harness import DaemonEnded, is_mounted, run


def test_a_clean_stop_keeps_everything_and_unmounts(own):
    (own.mount / "file").write_bytes(b"kept" * 1000)
    own.restart()
    assert (own.mount / "file").read_bytes() == b"kept" * 1000
    own.check_clean(data=True)
    own.stop()
    assert os.listdir(own.mount) == []
