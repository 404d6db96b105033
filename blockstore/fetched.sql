-- fetched.db: the index of the cache. It has the tables of schema.sql, and this one.

-- One row a pack with blocks that count as not resident any more: evicted by request, or damaged.
CREATE TABLE voids (
    pack    INTEGER PRIMARY KEY,     -- the pack's number
    offsets BLOB NOT NULL            -- of the blocks' records, ascending, 32-bit little-endian
);
