"""See tests/remotes/kind_gcs.py."""

from __future__ import annotations

from tests.syncer.remote_trees import RemoteKind

KIND = RemoteKind("gcs")
