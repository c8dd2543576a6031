"""`python -m probpose`."""

from .cli import main

main()
