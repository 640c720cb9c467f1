-- What of a grant nobody spent, to be summed up when its payment is taken back. Few transfers are of these kinds.
CREATE INDEX transfers_lost ON transfers (subscriber_id, grant_id, amount_microcredits)
    WHERE credit_account IN ('breakage', 'goodwill');
