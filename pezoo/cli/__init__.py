"""The command line, one file per command."""

from pezoo.cli.command import main

__all__ = ["main"]
