-- 3: sums saved at a clean stop; where a register lies.
--
-- What each slot that has records holds, for the next start (src/storage/saved.rs). Believed only while facts has the row
-- `sums`: 8 bytes big-endian, a checksum over these checksums in order.
CREATE TABLE sums (
    slot       INTEGER PRIMARY KEY,
    keys       INTEGER NOT NULL,
    tombstones INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    leaves     BLOB    NOT NULL,        -- 256 times a hash (16 bytes, little-endian) and a count of records (8)
    checksum   INTEGER NOT NULL         -- xxh3-64 of slot, the three counts and leaves
) STRICT;

-- xxh3-64 of slot and key alone: whose register it is stays known where what it promised is damaged. NULL in rows that an
-- older program wrote.
ALTER TABLE registers ADD COLUMN place INTEGER;
