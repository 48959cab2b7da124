"""The `tiercel` command. Each file holds the commands of one noun; `console` is how they all speak."""

from tiercel.cli.main import main

__all__ = ["main"]
