"""Commands in documents: what stands in their bash blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SERVES = 'title="in a terminal of its own"'
_BLOCK = re.compile(rf"^```bash( {SERVES})?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a document.

    Attributes:
        text: what a reader types.
        serves: it goes on running, beside what follows; its title says so to the reader.
    """

    text: str
    serves: bool


def blocks(document: str) -> list[Block]:
    """Return the bash blocks of a document below `docs/`, in order."""
    text = (DOCS / document).read_text(encoding="utf-8")
    return [Block(body.strip(), bool(serves)) for serves, body in _BLOCK.findall(text)]
