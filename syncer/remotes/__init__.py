"""Remotes: backends that hold files by path, one module a kind, behind one protocol.

Knows neither inodes nor mounts. `remote` has the protocol and its values, `errors` what it raises,
`registry` opens a remote by its URL, `wrappers` adds retries, a circuit breaker and limits.
"""
