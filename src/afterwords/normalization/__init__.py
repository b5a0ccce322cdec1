"""Written forms to words."""
