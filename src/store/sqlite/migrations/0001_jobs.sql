-- The truth about every job that is not simply waiting in the broker. The common path writes one row, once: 'succeeded'.
-- Instants are microseconds since 1970, UTC.
CREATE TABLE jobs (
    id            BLOB    NOT NULL PRIMARY KEY,
    created_at    INTEGER NOT NULL,
    finished_at   INTEGER,
    due_at        INTEGER,
    claimed_until INTEGER,
    -- Since when it waits for something to change: a newer build, or a broker that no longer gives it up.
    parked_at     INTEGER,
    claim         BLOB,
    root          BLOB,
    parent        BLOB,
    run           INTEGER NOT NULL,
    conflicts     INTEGER NOT NULL DEFAULT 0,
    state         TEXT    NOT NULL CHECK (state IN ('scheduled', 'queued', 'running', 'retrying', 'succeeded', 'dead',
                                                    'cancelled', 'discarded')),
    version       INTEGER NOT NULL,
    attempt       INTEGER NOT NULL,
    keyed         INTEGER NOT NULL,
    suspicion     INTEGER NOT NULL DEFAULT 0,
    kind          TEXT    NOT NULL,
    tenant        TEXT    NOT NULL,
    -- Text with a NUL in it is refused, as Postgres refuses it: what one store takes, the other takes too.
    source        TEXT    CHECK (instr(source, char(0)) = 0),
    reason        TEXT,
    error         TEXT,
    trace_parent  TEXT    CHECK (instr(trace_parent, char(0)) = 0),
    trace_state   TEXT    CHECK (instr(trace_state, char(0)) = 0),
    fingerprint   BLOB,
    body          BLOB,
    output        BLOB
) STRICT, WITHOUT ROWID;

CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_due ON jobs (kind, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX jobs_unsettled ON jobs (state, created_at, id) WHERE state <> 'succeeded';

-- One row for each failed attempt.
CREATE TABLE attempts (
    id        BLOB    NOT NULL,
    run       INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    failed_at INTEGER NOT NULL,
    code      TEXT    NOT NULL,
    error     TEXT    NOT NULL,
    PRIMARY KEY (id, run)
) STRICT, WITHOUT ROWID;

-- Jobs that are to be called off as soon as someone meets them.
CREATE TABLE tombstones (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         BLOB    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    tenant     TEXT    NOT NULL
) STRICT;

-- What runs where: a row for each process, written anew every few seconds.
CREATE TABLE instances (
    id         BLOB    NOT NULL PRIMARY KEY,
    started_at INTEGER NOT NULL,
    beat_at    INTEGER NOT NULL,
    pid        INTEGER NOT NULL,
    host       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    roles      TEXT    NOT NULL,
    -- The jobs that it runs, as JSON.
    work       TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- How many jobs of a kind were published in ten seconds: tells how old the oldest is that waits.
CREATE TABLE published (
    kind   TEXT    NOT NULL,
    bucket INTEGER NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (kind, bucket)
) STRICT, WITHOUT ROWID;

-- What all processes of an installation must agree on.
CREATE TABLE installation (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The embedded broker's messages: those that are not settled. Written in the order of seq, read by kind.
CREATE TABLE messages (
    kind       TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    -- How often it may have been given out by processes that are gone.
    given      INTEGER NOT NULL DEFAULT 0,
    -- What of its envelope is not at its default, as MessagePack.
    head       BLOB,
    body       BLOB    NOT NULL,
    PRIMARY KEY (kind, seq)
) STRICT, WITHOUT ROWID;

-- Up to where messages of a kind may have been given out. Moved ahead of the deliveries, in steps.
CREATE TABLE marks (
    kind TEXT    NOT NULL PRIMARY KEY,
    upto INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
