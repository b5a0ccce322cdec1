"""Benchmarks: what is claimed, measured. `make bench` prints all tables; docs/benchmarks.md keeps the last ones."""
