"""Run the CLI with `python -m afterwords`."""

from afterwords.cli import main

main()
