-- jobs.db: jobs and what is left of their plans. Written by every process that works on jobs, each
-- change in a transaction of its own; rows of a running job by the holder of its lease alone.
-- Times are nanoseconds since 1970 unless a comment says otherwise.

CREATE TABLE meta(
    key   TEXT PRIMARY KEY,            -- format
    value ANY NOT NULL
) WITHOUT ROWID;

CREATE TABLE jobs(
    number       INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice
    spec         TEXT NOT NULL,        -- JSON, see syncer/jobs_spec.py
    state        TEXT NOT NULL,        -- see syncer/job_states.py
    wanted       TEXT NOT NULL,        -- run, pause or cancel: set by anyone, obeyed by the holder
    reason       TEXT NOT NULL DEFAULT '',
    priority     INTEGER NOT NULL,     -- higher first
    schedule     INTEGER NOT NULL DEFAULT 0,  -- the scheduled job that this is a run of
    blocked_by   INTEGER NOT NULL DEFAULT 0,  -- failed because this job did not get done
    attempt      INTEGER NOT NULL DEFAULT 0,  -- how often it was claimed
    planned      INTEGER NOT NULL DEFAULT 0,  -- 1: all steps are there
    cleaned      INTEGER NOT NULL DEFAULT 0,  -- 1: ended long ago; steps and log are gone
    submitted_ns INTEGER NOT NULL,
    started_ns   INTEGER NOT NULL DEFAULT 0,
    ended_ns     INTEGER NOT NULL DEFAULT 0,
    due_ns       INTEGER NOT NULL DEFAULT 0,  -- scheduled jobs: the next run
    holder       TEXT NOT NULL DEFAULT '',    -- who has the lease, see syncer/jobs_holder.py
    lease_ns     INTEGER NOT NULL DEFAULT 0,  -- until when, by the clock of this boot
    bytes_moved  INTEGER NOT NULL DEFAULT 0,
    bytes_saved  INTEGER NOT NULL DEFAULT 0,
    last_event   INTEGER NOT NULL DEFAULT 0,  -- sequence number
    report       TEXT NOT NULL DEFAULT '{}'   -- JSON, at the end
);
CREATE INDEX active ON jobs(priority DESC, number) WHERE state = 'queued';
CREATE INDEX by_state ON jobs(state, number);
CREATE INDEX runs ON jobs(schedule) WHERE schedule > 0;

CREATE TABLE progress(                 -- apart from jobs: it is written four times a second
    job    INTEGER PRIMARY KEY,
    data   TEXT NOT NULL               -- JSON
);

CREATE TABLE dependencies(
    job   INTEGER NOT NULL,
    needs INTEGER NOT NULL,            -- must be done before
    PRIMARY KEY(job, needs)
) WITHOUT ROWID;
CREATE INDEX dependents ON dependencies(needs);

CREATE TABLE steps(
    number   INTEGER PRIMARY KEY,      -- job * 2^32 + 1, 2, …
    job      INTEGER NOT NULL,
    turn     INTEGER NOT NULL,         -- kind and order, see syncer/step_rows.py
    path     BLOB NOT NULL,            -- at the destination
    checksum INTEGER NOT NULL,         -- CRC-32 of path and detail
    detail   BLOB NOT NULL,            -- the rest of the step
    state    INTEGER NOT NULL DEFAULT 0, -- syncer/steps.py: StepState; running ones are waiting here
    attempts INTEGER NOT NULL DEFAULT 0  -- that failed
);
CREATE INDEX waiting ON steps(job, turn) WHERE state = 0;
CREATE INDEX failed ON steps(job) WHERE state = 3;

CREATE TABLE attempts(                 -- that failed
    step      INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,        -- 1, 2, …
    at_ns     INTEGER NOT NULL,
    transient INTEGER NOT NULL,        -- 1: worth another one
    error     TEXT NOT NULL,
    PRIMARY KEY(step, attempt)
) WITHOUT ROWID;

CREATE TABLE tallies(                  -- sums over steps
    job   INTEGER NOT NULL,
    kind  INTEGER NOT NULL,
    state INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    bytes INTEGER NOT NULL,            -- sizes, as planned
    PRIMARY KEY(job, kind, state)
) WITHOUT ROWID;

CREATE TABLE checkpoints(
    job  INTEGER NOT NULL,
    kind INTEGER NOT NULL,             -- of the step; 0: of the plan
    path BLOB NOT NULL,                -- not the step's number: a plan that is made anew has others
    data BLOB NOT NULL,
    PRIMARY KEY(job, kind, path)
) WITHOUT ROWID;

CREATE TABLE events(
    job      INTEGER NOT NULL,
    sequence INTEGER NOT NULL,         -- 1, 2, … in each job
    at_ns    INTEGER NOT NULL,
    event    TEXT NOT NULL,            -- JSON
    PRIMARY KEY(job, sequence)
) WITHOUT ROWID;
