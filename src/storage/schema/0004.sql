-- 4: values that end.
--
-- One row for each record with an end, in the order of their ends. A table of its own and no index of `records`: there an
-- index would make every replacement look for the row it replaces, also of the many that have no end. The token holds the
-- slot (its first byte).
CREATE TABLE ends (
    expires_at_ms INTEGER NOT NULL,
    token         INTEGER NOT NULL,
    key           BLOB    NOT NULL,
    PRIMARY KEY (expires_at_ms, token, key)
) STRICT, WITHOUT ROWID;
