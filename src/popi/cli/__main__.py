"""`python -m popi.cli`."""

from popi.cli import main

main()
