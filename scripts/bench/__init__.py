"""Measures what Metergate costs beside a bare pass-through, and what its parts do: ``make bench``."""
