"""``make soak``: the proofs that take too long for every run of the tests."""
