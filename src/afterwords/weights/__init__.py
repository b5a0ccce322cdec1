"""Model files: which there are (`catalog`), where they lie (`folder`), how they get there (`download`)."""
