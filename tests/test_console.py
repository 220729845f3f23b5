"""What is printed is what was given, also where it looks like `rich`'s markup."""

from __future__ import annotations

import ast
import io

import pytest
from rich.table import Table

from speculators.console import marked, open_console
from test_layers import PACKAGE, modules, tree

ODD = ("[/INST]", "[bold]runs[/]", "outputs/[kl,ce]/:smile:", "a\\[b]")


@pytest.mark.parametrize("text", ODD)
def test_lines_tables_and_titles_are_shown_as_they_are(text: str) -> None:
    screen = io.StringIO()
    console = open_console(file=screen, width=100)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    console.print(marked("note:", "yellow", f" {text}"))
    assert screen.getvalue().count(text) == 5


def test_a_coloured_word_is_coloured_on_a_terminal() -> None:
    screen = io.StringIO()
    console = open_console(file=screen, force_terminal=True, color_system="standard")
    console.print(marked("note:", "yellow", " [x]"))
    assert screen.getvalue() == "\x1b[33mnote:\x1b[0m [x]\n"


def test_every_console_is_opened_in_one_place() -> None:
    """Bars and the like without a console would open one of `rich`'s own."""
    others = [
        f"{name}: {node.func.id}"
        for name, path in modules().items()
        if path != PACKAGE / "console.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "Console"
        or (
            node.func.id in ("Progress", "track", "Live")
            and "console" not in [keyword.arg for keyword in node.keywords]
        )
    ]
    assert others == []
