CREATE TYPE job_state AS ENUM (
    'scheduled', 'queued', 'running', 'retrying', 'succeeded', 'dead', 'cancelled', 'discarded'
);

-- The truth about every job that is not simply waiting in the broker. The common path writes one row, once: 'succeeded'.
-- That insert touches the primary key and one BRIN index; every other index leaves rows out that have succeeded.
CREATE TABLE jobs (
    id            uuid        PRIMARY KEY,
    created_at    timestamptz NOT NULL,
    finished_at   timestamptz,
    due_at        timestamptz,
    claimed_until timestamptz,
    -- Since when it waits for something to change: a newer build, or a broker that no longer gives it up.
    parked_at     timestamptz,
    claim         uuid,
    root          uuid,
    parent        uuid,
    run           integer     NOT NULL,
    conflicts     integer     NOT NULL DEFAULT 0,
    state         job_state   NOT NULL,
    version       integer     NOT NULL,
    attempt       smallint    NOT NULL,
    keyed         boolean     NOT NULL,
    suspicion     smallint    NOT NULL DEFAULT 0,
    kind          text        NOT NULL,
    tenant        text        NOT NULL,
    source        text,
    reason        text,
    error         text,
    trace_parent  text,
    trace_state   text,
    fingerprint   bytea,
    body          bytea,
    output        bytea
) WITH (
    -- Rows change in place until they are terminal.
    fillfactor = 85,
    -- A share of a large table is too many dead rows: thresholds are absolute.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 500000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX jobs_finished ON jobs USING brin (finished_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX jobs_due ON jobs (kind, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX jobs_unsettled ON jobs (state, created_at, id) WHERE state <> 'succeeded';

-- One row for each failed attempt. No foreign key: its trigger would run for every row that the pruner removes.
CREATE TABLE attempts (
    id        uuid        NOT NULL,
    run       integer     NOT NULL,
    attempt   smallint    NOT NULL,
    failed_at timestamptz NOT NULL,
    code      text        NOT NULL,
    error     text        NOT NULL,
    PRIMARY KEY (id, run)
);

-- Jobs that are to be called off as soon as someone meets them.
CREATE TABLE tombstones (
    id         uuid        PRIMARY KEY,
    seq        bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    tenant     text        NOT NULL
);

-- What runs where: a row for each process, written anew every few seconds.
CREATE TABLE instances (
    id         uuid        PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at    timestamptz NOT NULL DEFAULT now(),
    pid        bigint      NOT NULL,
    host       text        NOT NULL,
    version    text        NOT NULL,
    roles      text        NOT NULL,
    -- The jobs that it runs, as JSON.
    work       text        NOT NULL
);

-- How many jobs of a kind were published in ten seconds: tells how old the oldest is that waits.
CREATE TABLE published (
    kind   text        NOT NULL,
    bucket timestamptz NOT NULL,
    count  bigint      NOT NULL,
    PRIMARY KEY (kind, bucket)
);

-- What all processes of an installation must agree on.
CREATE TABLE installation (
    name  text PRIMARY KEY,
    value text NOT NULL
);
