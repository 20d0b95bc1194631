"""`python -m popi` is the command `popi`."""

from popi.cli import main

main()
