"""Metergate: a gRPC metering gateway that turns AI compute into a prepaid utility."""
