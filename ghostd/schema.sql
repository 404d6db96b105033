-- namespace.db: the live tree. Written by the commit thread alone, one transaction an epoch.

CREATE TABLE meta(
    key   TEXT PRIMARY KEY,          -- see ghostd/namespace.py: Meta
    value ANY NOT NULL
) WITHOUT ROWID;

CREATE TABLE inodes(
    ino        INTEGER PRIMARY KEY,  -- never used twice
    generation INTEGER NOT NULL,     -- the mount that created it; for NFS handles
    mode       INTEGER NOT NULL,     -- type and permissions
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    nlink      INTEGER NOT NULL,     -- 0: unlinked, kept while it is open
    rdev       INTEGER NOT NULL,     -- device nodes only
    size       INTEGER NOT NULL,     -- bytes
    allocated  INTEGER NOT NULL,     -- bytes that are not holes
    atime_ns   INTEGER NOT NULL,     -- nanoseconds since 1970
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    btime_ns   INTEGER NOT NULL,     -- created
    parent     INTEGER NOT NULL,     -- directories: the one above; else 0
    children   INTEGER NOT NULL,     -- directories: how many entries; else 0
    flags      INTEGER NOT NULL,     -- 1: has rows in xattrs; 2: in a projection, and changed here; 4: its new files are pinned
    target     BLOB,                 -- symlinks: where to
    projection INTEGER NOT NULL DEFAULT 0, -- in which one it lies; 0: in none
    base       INTEGER NOT NULL DEFAULT 0, -- versions.id whose bytes show through holes; 0: none
    base_end   INTEGER NOT NULL DEFAULT 0, -- bytes of the base that show
    base_holes INTEGER NOT NULL DEFAULT 0  -- bytes of these that are holes
);
CREATE INDEX orphans ON inodes(ino) WHERE nlink = 0;

CREATE TABLE dirents(
    parent INTEGER NOT NULL,         -- inode of the directory
    cookie INTEGER NOT NULL,         -- position in listings: ascending in the order of creation, never used twice
    name   BLOB NOT NULL,            -- 1 to 255 bytes
    ino    INTEGER NOT NULL,
    PRIMARY KEY(parent, cookie)
) WITHOUT ROWID;
CREATE UNIQUE INDEX names ON dirents(parent, name);

CREATE TABLE segments(
    ino     INTEGER NOT NULL,
    segment INTEGER NOT NULL,        -- offset in the file / 4 MiB
    bytes   INTEGER NOT NULL,        -- how many of them are not holes
    extents BLOB NOT NULL,           -- docs/format.md
    PRIMARY KEY(ino, segment)
) WITHOUT ROWID;

CREATE TABLE xattrs(
    ino   INTEGER NOT NULL,
    name  BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY(ino, name)
) WITHOUT ROWID;

CREATE TABLE copies(                 -- scheduled copies of this file in the packs
    taken_ns INTEGER PRIMARY KEY,
    recipe   BLOB NOT NULL           -- the chunk ids, 32 bytes each
);
