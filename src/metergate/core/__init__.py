"""The pure rules: credits, usage, rating, grants, reservations and the ledger. No I/O, no clock, no ids of its own."""
