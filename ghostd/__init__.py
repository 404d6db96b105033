"""GhostFS: the daemon that mounts one namespace and keeps it on disk.

`main` is the composition root and alone sees every part; `filesystem` holds the semantics and knows
neither FUSE nor errno; `fuse` translates; `api` answers `orbit-ctl` from a thread of its own.
"""
