"""How patient one is with a remote: every number of the wrappers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemotePolicy:
    """Numbers for the remotes of one host; None: no limit."""

    # Trying again (retry.py). The deadline ends it, the attempts are for what fails at once.
    deadline_s: float = 30.0  # of one call with all its attempts; of a listing's first page
    attempts_max: int = 12
    backoff_s: float = 0.2  # before the second attempt; doubles from one to the next
    backoff_max_s: float = 5.0
    garbled_max: int = 2  # attempts of one call that may come back Garbled

    # One attempt (limits.py).
    attempt_timeout_s: float = 15.0  # of a listing: for each page
    write_timeout_s: float = 60.0  # after the last byte was taken from the source
    close_timeout_s: float = 5.0

    # Leaving a host alone (breaker.py): both must be reached, so that a server may restart.
    breaker_failures: int = 5  # in a row
    breaker_after_s: float = 10.0  # since the first of them was asked
    breaker_pause_s: float = 2.0  # doubles while probes fail
    breaker_pause_max_s: float = 15.0

    # Sharing (limits.py).
    connections_max: int = 16  # calls of one remote at a time
    requests_per_s: float | None = None  # this and below: of one host
    read_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None
    burst_s: float = 1.0  # how long a rate may be saved up
