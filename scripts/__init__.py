"""Scripts of the project, run from its root as modules."""
