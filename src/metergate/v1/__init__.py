"""Generated from protos/metergate/v1; see scripts/generate_stubs.py."""
