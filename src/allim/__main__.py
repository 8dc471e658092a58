"""`python -m allim`."""

from allim.cli import main

main()
