"""``python -m qdeploy``."""

from qdeploy.cli.main import main

main()
