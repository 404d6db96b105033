"""See tests/remotes/kind_s3.py."""

from __future__ import annotations

from tests.syncer.remote_trees import RemoteKind

KIND = RemoteKind("s3")
