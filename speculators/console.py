"""The console that commands print to."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text


def open_console(**settings: Any) -> Console:
    """Return a console that prints text as it is.

    Names of files, samples and categories may hold what `rich` reads as markup or emoji, so it
    reads none: what is coloured is a `Text`, or has a style.

    Args:
        settings: of `rich.console.Console`.
    """
    return Console(highlight=False, markup=False, emoji=False, **settings)


def marked(word: str, style: str, rest: str) -> Text:
    """Return a line that opens with a coloured word."""
    return Text.assemble((word, style), rest)
