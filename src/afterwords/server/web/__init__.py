"""Pages for people, rendered on the server: the account, and buying a plan. They work without scripts."""
