"""Engines in a Ray cluster: `dispatcher` in the server, `gateway` in its child process, `replica` in the cluster."""
