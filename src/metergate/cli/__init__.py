"""Commands, without decisions."""
