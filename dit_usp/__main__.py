"""`python -m dit_usp` is `dit-usp`."""

from dit_usp.cli import main

main()
