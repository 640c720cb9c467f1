-- An index with a condition is written whenever a column of the condition is, also if nothing of it changes: by what is
-- unspent, every charge wrote a page of it. So what a wallet can be drawn from stands in a column that few charges change.

-- 1: nothing is left of it. 0: perhaps something is.
ALTER TABLE grants ADD COLUMN is_spent INTEGER NOT NULL DEFAULT 0
    CHECK (is_spent = 0 OR is_spent = 1 AND unspent_microcredits = 0);

DROP INDEX grants_with_credit;
UPDATE grants SET is_spent = 1 WHERE unspent_microcredits = 0;
CREATE INDEX grants_with_credit ON grants (subscriber_id) WHERE is_spent = 0;
