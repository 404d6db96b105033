-- namespace.db: what is known of remote trees (docs/projections.md). Created with format 2.

CREATE TABLE projections(
    id          INTEGER PRIMARY KEY,  -- the inode of its root
    url         TEXT NOT NULL,        -- without secrets
    mode        TEXT NOT NULL,        -- ro, cow
    options     TEXT NOT NULL,        -- JSON object of strings, without secrets
    ttl_ms      INTEGER NOT NULL,     -- how old a listing may be
    block_bytes INTEGER NOT NULL,
    removing    INTEGER NOT NULL,     -- 1: it has no name any more, and its inodes are going
    configured  INTEGER NOT NULL,     -- 1: from the configuration file
    created_ns  INTEGER NOT NULL
);

CREATE TABLE remote_dirs(
    ino       INTEGER PRIMARY KEY,
    key       BLOB NOT NULL,          -- from the remote's root, ends in / (the root's is empty)
    listed_ns INTEGER NOT NULL        -- when the last complete listing began; 0: never
);

CREATE TABLE versions(                -- one state of one remote file
    id        INTEGER PRIMARY KEY,    -- the inode that first showed it
    key       BLOB NOT NULL,          -- from the remote's root
    size      INTEGER NOT NULL,       -- bytes
    etag      TEXT NOT NULL,          -- empty: the remote has none
    mtime_ns  INTEGER NOT NULL,       -- as the remote says; 0: unknown
    pinned    INTEGER NOT NULL        -- 1: its blocks are never evicted
);
CREATE INDEX pinned ON versions(id) WHERE pinned = 1;

CREATE TABLE blocks(                  -- hints: a chunk that is gone is fetched again
    version INTEGER NOT NULL,
    part    INTEGER NOT NULL,         -- block number / 64
    ids     BLOB NOT NULL,            -- 64 chunk ids, zeros where never fetched
    PRIMARY KEY(version, part)
) WITHOUT ROWID;

CREATE TABLE hidden(                  -- names that a cow projection has deleted or moved away
    parent INTEGER NOT NULL,
    name   BLOB NOT NULL,
    PRIMARY KEY(parent, name)
) WITHOUT ROWID;
