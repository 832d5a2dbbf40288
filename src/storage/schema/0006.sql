-- 6: where the tombstones are.
--
-- One row for each tombstone, in the order in which a slot's were written. A table of its own and no index of `records`, as
-- for `ends`: only a write that leaves a tombstone, or takes one's place, meets it. A row here only says where to look
-- (src/storage/remains.rs).
CREATE TABLE tombstones (
    slot    INTEGER NOT NULL,
    written INTEGER NOT NULL,
    key     BLOB    NOT NULL,
    PRIMARY KEY (slot, written, key)
) STRICT, WITHOUT ROWID;

INSERT INTO tombstones SELECT slot, ifnull(written, hlc), key FROM records WHERE value IS NULL AND large IS NULL;
