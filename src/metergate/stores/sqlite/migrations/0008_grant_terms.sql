-- What a grant was agreed to be, in the transfer that made it: what another program changes in a grant shows.

-- JSON: [source, priority, effective_time_us, rollover_microcredits_max, rollover_seconds]; NULL: it adds no grant.
ALTER TABLE transfers ADD COLUMN grant_terms TEXT;

-- What earlier versions made is taken as its row has it now: there is no other evidence. A grant of its own that a refund
-- made was made by the first refund that reached it; later ones gave back what it had paid.
UPDATE transfers SET grant_terms = (
    SELECT json_array(source, priority, effective_time_us, rollover_microcredits_max, rollover_seconds) FROM grants
    WHERE grants.subscriber_id = transfers.subscriber_id AND grants.grant_id = substr(transfers.credit_account, 7)
)
WHERE substr(credit_account, 1, 6) = 'grant:' AND (
    kind IN ('GRANT', 'ADJUSTMENT', 'ROLLOVER')
    OR kind = 'REFUND' AND credit_account GLOB 'grant:refund*:*' AND NOT EXISTS (
        SELECT 1 FROM transfers AS earlier
        WHERE earlier.subscriber_id = transfers.subscriber_id AND earlier.sequence < transfers.sequence
            AND earlier.kind = 'REFUND' AND earlier.credit_account = transfers.credit_account
    )
);
