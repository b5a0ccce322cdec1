"""Pages for people, rendered on the server: the account page. They work without scripts."""
