-- 1: records, hints, floors, facts.
--
-- A record lies in order of (slot, key), so that a slot is one contiguous range. Small values lie in the row; large
-- ones would spill out of its page, so they have a table of their own (docs/decisions/0001-record-table.md).
-- Columns of 64 unsigned bits are stored as the signed integer of the same bits.
-- A row is verified by its checksum, which covers key and record; `value` and `large` both NULL is a tombstone.

CREATE TABLE records (
    slot          INTEGER NOT NULL,
    key           BLOB    NOT NULL,
    hlc           INTEGER NOT NULL,
    writer        INTEGER NOT NULL,
    rmw           INTEGER NOT NULL,
    written       INTEGER,              -- NULL: equal to hlc, as for every plain write
    expires_at_ms INTEGER,
    checksum      INTEGER NOT NULL,
    content_type  BLOB,
    value         BLOB,
    large         INTEGER,              -- large_values.id
    large_bytes   INTEGER,              -- length of that value, for counting without reading it
    PRIMARY KEY (slot, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE large_values (
    id    INTEGER PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE hints (
    target        INTEGER NOT NULL,     -- the home replica it is kept for
    slot          INTEGER NOT NULL,
    key           BLOB    NOT NULL,
    hlc           INTEGER NOT NULL,
    writer        INTEGER NOT NULL,
    rmw           INTEGER NOT NULL,
    written       INTEGER,
    expires_at_ms INTEGER,
    checksum      INTEGER NOT NULL,
    content_type  BLOB,
    value         BLOB,
    large         INTEGER,
    large_bytes   INTEGER,
    counted       INTEGER NOT NULL,     -- 1: it counted towards its write's level; only delivery ends it
    kept_at_ms    INTEGER NOT NULL,
    PRIMARY KEY (target, slot, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX hints_by_age ON hints (target, counted, kept_at_ms);

CREATE TABLE floors (
    slot          INTEGER PRIMARY KEY,
    written       INTEGER NOT NULL,
    hlc           INTEGER NOT NULL,
    writer        INTEGER NOT NULL,
    rmw           INTEGER NOT NULL,
    ballot_hlc    INTEGER NOT NULL,
    ballot_writer INTEGER NOT NULL
) STRICT;

-- Single values: topology, proposal (JSON), clock (the reserved reading, 8 bytes big-endian).
CREATE TABLE facts (
    name     TEXT    PRIMARY KEY,
    body     BLOB    NOT NULL,
    checksum INTEGER NOT NULL           -- xxh3-64 of the body
) STRICT, WITHOUT ROWID;
