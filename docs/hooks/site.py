"""What mkdocs calls while it builds the site: adds what is made from the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import pictures
import reference


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in reference.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the pictures where a page asks for them, inside it, so that they follow its colours."""
    for name, svg in pictures.pictures().items():
        markdown = markdown.replace(f"{{{{ {name} }}}}", svg.replace("\n", ""))
    return markdown
