-- What the gateway knows in memory of charges' requests, kept for its next start: a filter whose bits are only ever set.

CREATE TABLE request_filter (
    chunk_number INTEGER PRIMARY KEY, -- from 0 on
    chunks INTEGER NOT NULL CHECK (chunks > 0), -- of a whole filter
    covers_charge_number INTEGER NOT NULL CHECK (covers_charge_number >= 0), -- all charges up to this one are in it
    bits BLOB NOT NULL, -- compressed
    seal BLOB NOT NULL -- keyed, of all of this: what is damaged, or another ledger's, is made anew
) STRICT;
