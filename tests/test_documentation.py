"""The documentation says what is there: generated pages, error texts, public names."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from documents import DOCS
from speculators.cli.commands import COMMANDS
from speculators.config.discovery import variants
from speculators.config.schema import Config
from speculators.config.wording import field_doc
from speculators.training.progress import SHOWN

ROOT = DOCS.parent
PACKAGE = ROOT / "speculators"


@cache
def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def configuration_page() -> str:
    return hook("reference").configuration_page()


def group_schema(hint: Any) -> Any:
    """The schema a field of the configuration holds, which may be null; None for a plain key."""
    return next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)


def schemas() -> list[tuple[str, Any]]:
    """Every schema of the configuration with the prefix of its keys."""
    found: list[tuple[str, Any]] = [("", Config)]
    for group, hint in get_type_hints(Config).items():
        own = group_schema(hint)
        if own is not None:
            found += [(f"{group}.", schema) for schema in variants().get(group, {"": own}).values()]
    return found


@pytest.mark.parametrize(("prefix", "schema"), schemas())
def test_every_key_is_documented_and_stands_in_the_reference(prefix: str, schema: Any) -> None:
    page = configuration_page()
    listed = {key: meaning for key, _, _, meaning in hook("reference").rows(schema, prefix)}
    for field in fields(schema):
        hint = get_type_hints(schema)[field.name]
        if is_dataclass(hint) or (schema is Config and group_schema(hint)):
            continue
        assert field_doc(schema, field.name), f"{schema.__name__}.{field.name} has no documentation"
        assert f"{prefix}{field.name}" in listed
    assert listed or not prefix
    for key, meaning in listed.items():
        assert meaning, key
        assert f"| `{key}` |" in page


def test_every_choice_stands_in_the_reference() -> None:
    page = configuration_page()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert f"{path.parent.name}={path.stem}: " in page


def test_every_command_stands_in_the_reference() -> None:
    page = hook("reference").commands_page()
    assert all(f"## {name}\n" in page for name in COMMANDS)


def texts_of_the_code() -> str:
    """Every string of the package; what is filled in at run time becomes a placeholder."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_quotes_texts_that_exist() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 30
    known = texts_of_the_code()
    assert [text for text in quoted if text not in known] == []


def public_definitions(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of public classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                found += [
                    (f"{node.name}.{child.name}", child)
                    for child in node.body
                    if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                    and not child.name.startswith("_")
                    and not _overrides(child)
                ]
    return found


def _overrides(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the docstring of the method it implements is enough."""
    names = {"forward", "backward", "run"}
    return node.name in names


def test_every_public_name_is_documented() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, node in public_definitions(ast.parse(path.read_text(encoding="utf-8")))
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_blocks_of_code_are_such_that_the_site_shows_them() -> None:
    """An opening line it cannot read would stand in the page as text, and swallow what follows."""
    wrong = [
        f"{path.relative_to(DOCS)}: {line}"
        for path in DOCS.rglob("*.md")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith("```")
        and not re.fullmatch(r' *```(\w+( title="[^"]+")?)?', line)
    ]
    assert wrong == []


def test_lines_of_progress_are_such_as_a_run_prints() -> None:
    """After the metrics come what the source of states says and the pace, or `...` for both."""
    number = r"-?[\d.]+"
    texts = map(re.escape, SHOWN.values())
    forms = "|".join(re.sub(r"\\{.*?\\}", lambda _: number, text) for text in texts)
    metrics = rf"step \d+/\d+(  ({forms}))+"
    line = re.compile(rf"{metrics}(  (\.\.\.|waits .*|{number} (steps/s|s/step)  .*))?")
    found = [
        (path.relative_to(DOCS).as_posix(), text)
        for path in DOCS.rglob("*.md")
        for text in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"step \d+/", text)
    ]
    assert len(found) > 20
    assert [(page, text) for page, text in found if not line.fullmatch(text)] == []


@pytest.mark.docs
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("index.html", "reference/configuration/index.html", "concepts/mask/index.html"):
        assert (tmp_path / name).stat().st_size > 5000
    pictures = {"": 1, "concepts/mask": 3, "concepts/data_path": 1, "concepts/acceptance": 1}
    for name, count in pictures.items():
        page = (tmp_path / name / "index.html").read_text("utf-8")
        assert page.count("</title>") == 1 + count, name  # the icons of every page have none
    raw = re.compile(r"```|\{\{ \w+ \}\}")  # Markdown and pictures that were not understood
    code = re.compile(r"<code>.*?</code>", re.DOTALL)  # prompts of suites hold both
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("index.html")}
    assert [str(page) for page, text in pages.items() if raw.search(code.sub("", text))] == []
