"""Counting rules, named after the form their vocabulary comes in."""
