"""The layer between trees: remotes, walking, planning, transferring, snapshots and jobs.

It stands between `ghostd` and `blockstore` and knows a tree only through a protocol, so that the
same code moves files between remotes, the mount and the block store. The layer has no modules
yet; the import rules that keep its place are checked by `make lint`.
"""
