-- namespace.db: finding what has been pushed and is not part of the cache yet. Created with format 5.

CREATE INDEX pushed_here ON inodes(projection, ino) WHERE projection > 0 AND allocated > 0 AND flags & 2 = 0;
