"""``python -m shoal.cli`` is the command ``shoal``."""

from shoal.cli.root import main

main()
