-- chunks.db: a cache of the packs. Everything in it can be rebuilt from them.

-- One row a fact about the whole index.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,          -- 'schema', 'store_uuid', 'next_run', 'next_pack'
    value NOT NULL
) WITHOUT ROWID;

-- One row a pack whose records the index knows.
CREATE TABLE packs (
    number  INTEGER PRIMARY KEY,     -- the number in the pack's name
    bytes   INTEGER NOT NULL,        -- all records before this offset are indexed
    records INTEGER NOT NULL,        -- how many chunks and roots that is
    state   INTEGER NOT NULL         -- 0 open, 1 sealed, 2 condemned: its file may be gone
);

-- One row a run: a table run_N (id, pack, offset, length, share; key id, pack), never changed.
--   id      first 20 bytes of the chunk's id
--   pack    the pack's number
--   offset  of the record's header in the pack, in bytes
--   length  payload as stored, in bytes
--   share   bytes of a group's record, its header included, that count as this chunk's; 0: all
-- Runs of like size are merged into a larger one. Where a chunk has several rows, the one in the
-- newest run counts, in one run the one in the newest pack; rows of packs that are gone count nowhere.
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,      -- N
    newest INTEGER NOT NULL,         -- age: the highest N of the runs merged into this one
    rows   INTEGER NOT NULL,         -- chunks in the run
    filter BLOB NOT NULL             -- Bloom filter over the run's ids, 64-bit little-endian words
);

-- One row a root record that is still in a pack.
CREATE TABLE roots (
    seq    INTEGER PRIMARY KEY,      -- grows with every root record
    pack   INTEGER NOT NULL,
    offset INTEGER NOT NULL,         -- of the record's header, in bytes
    length INTEGER NOT NULL          -- payload as stored, in bytes
);
