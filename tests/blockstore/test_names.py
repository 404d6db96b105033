"""The package's names, and what they cost."""

import subprocess
import sys

import blockstore


def test_every_name_is_there():
    for name in blockstore.__all__:
        getattr(blockstore, name)
    assert not hasattr(blockstore, "no_such_name")


def test_the_errors_load_no_database():
    code = (
        "import sys, blockstore.errors;"
        "print([m for m in ('apsw', 'blake3', 'zstandard', 'pyfastcdc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
