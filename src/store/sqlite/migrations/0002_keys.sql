-- API keys. No key itself stands here, only what it hashes to.
CREATE TABLE keys (
    id             TEXT    NOT NULL PRIMARY KEY,
    created_at     INTEGER NOT NULL,
    expires_at     INTEGER,
    -- Its row stays: a revoked key must not be known again under its id.
    revoked_at     INTEGER,
    last_used_at   INTEGER,
    -- Until when the secret before the last rotation is good.
    previous_until INTEGER,
    env            TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    tenant         TEXT    NOT NULL,
    -- What it allows, as JSON.
    grants         TEXT    NOT NULL,
    digest         BLOB    NOT NULL,
    previous       BLOB
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;
