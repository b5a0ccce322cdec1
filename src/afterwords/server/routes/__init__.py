"""The routes of the /v1 API, one file per resource."""
