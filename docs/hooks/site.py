"""What mkdocs calls while it builds the site: adds what is made from the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import pictures
import reference

_PICTURES = Path(__file__).parents[1] / "pictures"
_PICTURE = re.compile(r'<img [^>]*src="[^"]*pictures/(\w+\.svg)"[^>]*>')
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")
_AS_IT_IS = re.compile(r"(<(pre|code|a|h1|h2|h3)\b.*?</\2>)", re.DOTALL)


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


def on_page_content(content: str, **_: Any) -> str:
    """Put drawings into the page, so that they follow its colours, and link papers."""
    content = _PICTURE.sub(lambda found: (_PICTURES / found[1]).read_text("utf-8"), content)
    parts = _AS_IT_IS.split(content)  # text, element, its name, text, element, its name, ...
    for index in range(0, len(parts), 3):
        parts[index] = _PAPER.sub(r'<a href="https://arxiv.org/abs/\1">\g<0></a>', parts[index])
    return "".join(part for index, part in enumerate(parts) if index % 3 != 2)
