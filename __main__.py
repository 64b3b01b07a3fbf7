"""`python -m trainplan`."""

from .cli.main import main

main()
