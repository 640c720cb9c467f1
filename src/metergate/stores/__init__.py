"""Ledger stores, named after their mechanism."""
