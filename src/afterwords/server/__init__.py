"""The server: the /v1 API, the job pipeline and the store, to be run by `afterwords serve` or embedded."""
