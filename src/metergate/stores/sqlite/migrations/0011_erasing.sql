-- A subscriber is forgotten in many small transactions: whom it is of, until all its rows have their new names.

ALTER TABLE erasures ADD COLUMN erasing_subscriber_id TEXT; -- NULL: all are renamed
-- 1: what it was called may still be in unused space, or in the WAL.
ALTER TABLE erasures ADD COLUMN leaves_copies INTEGER NOT NULL DEFAULT 0 CHECK (leaves_copies IN (0, 1));

CREATE UNIQUE INDEX erasures_unfinished ON erasures (erasing_subscriber_id) WHERE erasing_subscriber_id IS NOT NULL;
CREATE INDEX erasures_with_copies ON erasures (leaves_copies) WHERE leaves_copies = 1;
