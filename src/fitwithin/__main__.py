"""``python -m fitwithin`` is the command line."""

from fitwithin.cli import main

main()
