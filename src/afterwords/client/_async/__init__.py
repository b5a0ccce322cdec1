"""The client to await, written by hand."""
