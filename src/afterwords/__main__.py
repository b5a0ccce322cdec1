"""`python -m afterwords` is the program `afterwords`."""

from afterwords.cli import main

main()
