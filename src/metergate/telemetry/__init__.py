"""Observers, named after what they write: metrics, logs, traces."""
