"""`python -m afterwords` is the program `afterwords`."""

from afterwords.cli.app import main

main()
