-- namespace.db: what snapshots of the tree need (docs/snapshots.md). Created with format 3.

CREATE INDEX places ON dirents(ino);  -- from an inode to the directories that name it

CREATE TABLE changed(                 -- of the tree's own inodes: those that changed since `tree_objects` was last settled
    ino INTEGER PRIMARY KEY
);

CREATE TABLE tree_objects(            -- directories whose tree object shows them as they are, save for what `changed` says
    ino    INTEGER PRIMARY KEY,
    object BLOB NOT NULL,             -- its id (docs/format.md)
    sums   BLOB NOT NULL              -- of what is below: see ghostd/snapshots_encode.py
);

CREATE TABLE snapshot_links(          -- files of projected snapshots that have several names
    projection INTEGER NOT NULL,
    link       BLOB NOT NULL,         -- the file's identity: of the snapshot, and in it
    ino        INTEGER NOT NULL,
    PRIMARY KEY(projection, link)
) WITHOUT ROWID;
CREATE INDEX linked ON snapshot_links(ino);
