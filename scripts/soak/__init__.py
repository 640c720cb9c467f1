"""The proofs of the test suite again, with big numbers: what ``make soak`` runs."""
