"""``python -m foretoken`` is the command line."""

from foretoken.cli import main

main()
