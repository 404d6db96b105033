"""See tests/remotes/kind_file.py."""

from __future__ import annotations

from tests.syncer.remote_trees import RemoteKind

KIND = RemoteKind("file")
