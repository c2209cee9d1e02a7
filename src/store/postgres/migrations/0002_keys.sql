-- API keys. No key itself stands here, only what it hashes to.
CREATE TABLE keys (
    id             text        PRIMARY KEY,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz,
    -- Its row stays: a revoked key must not be known again under its id.
    revoked_at     timestamptz,
    last_used_at   timestamptz,
    -- Until when the secret before the last rotation is good.
    previous_until timestamptz,
    env            text        NOT NULL,
    name           text        NOT NULL,
    tenant         text        NOT NULL,
    -- What it allows, as JSON.
    grants         text        NOT NULL,
    digest         bytea       NOT NULL,
    previous       bytea
);

CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;
