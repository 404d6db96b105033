-- namespace.db: what sending local changes back needs (docs/projections.md). Created with format 4.

CREATE TABLE gone(                    -- what a remote has, and a projection has deleted, moved or replaced
    projection INTEGER NOT NULL,
    key        BLOB NOT NULL,         -- from the remote's root; a directory's ends in /
    parent     INTEGER NOT NULL,      -- inode of the directory that showed it; may be gone, too
    name       BLOB NOT NULL,         -- its name there
    ino        INTEGER NOT NULL,      -- what showed it; lives on where it was moved, and needs it then
    size       INTEGER NOT NULL,      -- of the version that was seen; -1: not known
    etag       TEXT NOT NULL,         -- of a directory: the key that it is being renamed to, in hex
    mtime_ns   INTEGER NOT NULL,
    target     BLOB,                  -- symlinks: where to
    PRIMARY KEY(projection, key)
) WITHOUT ROWID;

CREATE INDEX changed_here ON inodes(projection, ino) WHERE flags & 2;
