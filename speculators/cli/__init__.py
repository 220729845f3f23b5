"""The command line: `speculators COMMAND`, and `python train.py`."""

from speculators.cli.entry import main

__all__ = ["main"]
