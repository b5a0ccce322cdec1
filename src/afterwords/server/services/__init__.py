"""The rules: what a request may do and what becomes of a job. Knows ports only."""
