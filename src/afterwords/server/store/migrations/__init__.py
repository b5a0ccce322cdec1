"""How the schema came to be, step by step; `migrate.py` runs what is missing."""
