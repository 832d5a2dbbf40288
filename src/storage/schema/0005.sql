-- 5: floors with a checksum, and seals.
--
-- No program before this one raised a floor, so there is none to keep. A floor that was damaged would let a deleted key come
-- back, or refuse what is new: a database with one is set aside (src/storage/floors.rs).

DROP TABLE floors;

CREATE TABLE floors (
    slot          INTEGER PRIMARY KEY,
    written       INTEGER NOT NULL,
    hlc           INTEGER NOT NULL,
    writer        INTEGER NOT NULL,
    rmw           INTEGER NOT NULL,
    ballot_hlc    INTEGER NOT NULL,
    ballot_writer INTEGER NOT NULL,
    sealed        INTEGER NOT NULL,     -- ballots of up to this time are refused
    checksum      INTEGER NOT NULL      -- xxh3-64 of all of them, in this order
) STRICT;
