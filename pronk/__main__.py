"""`python -m pronk`, which is `pronk`."""

from pronk.cli import main

main()
