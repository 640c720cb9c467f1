"""The use case: admit, dispatch, pull, count, capture, deliver, settle."""
