"""What tutorials tell people to type: every command exists, and every configuration composes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from documents import DOCS, blocks
from speculators.cli.commands import COMMANDS
from speculators.config.checking import check
from speculators.config.composition import Request

TUTORIALS = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("tutorials/*.md"))
PROGRAMS = {"speculators", "vllm", "curl", "head"}


@pytest.mark.parametrize("document", TUTORIALS)
def test_every_command_composes(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [shlex.split(line) for block in blocks(document) for line in block.text.splitlines()]
    assert {words[0] for words in found} <= PROGRAMS
    ours = [words[1:] for words in found if words[0] == "speculators"]
    assert ours
    for name, *overrides in ours:
        end = overrides.index("--") if "--" in overrides else len(overrides)
        request = Request(name, tuple(overrides[:end]))
        check(request, needs=COMMANDS[name].needs, values=True)


@pytest.mark.parametrize("document", TUTORIALS)
def test_outputs_are_filled_in(document: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    assert "@" not in text
    assert text.count("```bash") == text.count("```text") + 1  # a server may stay silent
