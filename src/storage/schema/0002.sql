-- 2: registers.
--
-- What a key's register promised and accepted, for each key that a register operation touched. Reads of records never
-- look here. The ballot is NULL where nothing was accepted; then so is everything between it and the seal. From hlc on
-- the columns are those of `records`, for the record of the accepted state, and NULL where that state has none.
-- src/storage/register.rs says what lies in `state`, what the seal covers, and why one row holds both.

CREATE TABLE registers (
    slot            INTEGER NOT NULL,
    key             BLOB    NOT NULL,
    promised_hlc    INTEGER NOT NULL,
    promised_writer INTEGER NOT NULL,
    ballot_hlc      INTEGER,
    ballot_writer   INTEGER,
    state           BLOB,
    seal            INTEGER NOT NULL,
    hlc             INTEGER,
    writer          INTEGER,
    rmw             INTEGER,
    written         INTEGER,
    expires_at_ms   INTEGER,
    checksum        INTEGER,
    content_type    BLOB,
    value           BLOB,
    large           INTEGER,
    large_bytes     INTEGER,
    PRIMARY KEY (slot, key)
) STRICT, WITHOUT ROWID;
