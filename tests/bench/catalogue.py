"""All groups, in the order of a full run."""

from __future__ import annotations

from tests.bench.bench import Group
from tests.bench.files import AGAIN, RANDOM, SEQUENTIAL
from tests.bench.remote_reads import FAR, REMOTE
from tests.bench.remote_scale import BESIDE, REMOTE_SCALE
from tests.bench.scale import INDEX, SCALE, SHIFT
from tests.bench.stores import INGEST, SIZES
from tests.bench.sync_backup import SYNC_BACKUP
from tests.bench.sync_beside import SYNC_BESIDE
from tests.bench.sync_far import SYNC_FAR
from tests.bench.sync_local import SYNC_AGAIN, SYNC_COPY
from tests.bench.trees import FIND, SMALL, SOURCE

GROUPS: dict[str, Group] = {
    group.key: group
    for group in (
        *(SEQUENTIAL, SMALL, SOURCE, RANDOM, AGAIN, FIND),
        *(INGEST, SIZES, SCALE, INDEX, SHIFT),
        *(REMOTE, FAR, REMOTE_SCALE, BESIDE),
        *(SYNC_COPY, SYNC_AGAIN, SYNC_BACKUP, SYNC_FAR, SYNC_BESIDE),
    )
}
