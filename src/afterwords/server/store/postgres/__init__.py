"""Rows in Postgres, which several servers on several machines may share."""
