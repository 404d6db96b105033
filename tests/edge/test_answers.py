"""The table of errno: every answer of the filesystem has one of its own choosing."""

from __future__ import annotations

import errno
import inspect

import pytest

from blockstore import errors as store_errors
from ghostd import errors
from ghostd.fuse import ERRNO, errno_of
from ghostd.reader import ReadTimeout


def _answers():
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.FilesystemError) and kind is not errors.FilesystemError:
            yield kind


@pytest.mark.parametrize("kind", list(_answers()))
def test_every_answer_is_in_the_table(kind):
    assert kind in ERRNO
    assert errno_of(kind()) == ERRNO[kind]


def test_a_new_kind_of_answer_counts_as_its_parent_and_else_as_an_io_error():
    class Narrower(errors.NotFound):
        pass

    assert errno_of(Narrower()) == errno.ENOENT
    assert errno_of(store_errors.OrbitError("anything else")) == errno.EIO


def test_damage_is_an_io_error_and_a_stuck_disk_a_timeout():
    assert errno_of(store_errors.ChunkDamaged(bytes(32), "pack")) == errno.EIO
    assert errno_of(store_errors.ChunkMissing(bytes(32))) == errno.EIO
    assert errno_of(store_errors.StorageFull("full")) == errno.ENOSPC
    assert errno_of(ReadTimeout("stuck")) == errno.ETIMEDOUT
