"""Wire to domain and back, without decisions: one file a service."""
