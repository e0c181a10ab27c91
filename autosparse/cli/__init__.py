"""The command line: it parses, calls one library function, prints."""

from autosparse.cli.main import main

__all__ = ["main"]
