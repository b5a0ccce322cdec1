"""Rows in one SQLite file: one writer thread with group commit, and reads on the event loop."""
