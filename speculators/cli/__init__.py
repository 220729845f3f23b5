"""The command line: `speculators train|prepare|plan|serve|extract|evaluate`, and `python train.py`."""

from speculators.cli.entry import main

__all__ = ["main"]
