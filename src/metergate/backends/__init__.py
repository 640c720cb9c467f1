"""Adapters to the servers that run models, named after their protocol."""
