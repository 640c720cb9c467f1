-- What a request that its backend counts has probably used: a crash is settled at that if it is lower than what is captured.
ALTER TABLE reservations ADD COLUMN estimate TEXT; -- JSON: [microcredits, [[token class, tokens], ...]]; NULL: none
