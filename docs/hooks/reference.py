"""Pages made from the code, so that they cannot differ from it: configuration and commands."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from speculators.cli.commands import COMMANDS
from speculators.cli.help import command_help
from speculators.config.discovery import variants
from speculators.config.folder import HIDDEN_GROUPS, config_folder, file_comment
from speculators.config.schema import Config
from speculators.config.wording import describe, field_doc, show

CONFIGURATION = "reference/configuration.md"
COMMANDS_PAGE = "reference/commands.md"
_REQUIRED = "???"


def pages() -> dict[str, str]:
    """Return every generated page: path below `docs/` -> Markdown."""
    return {CONFIGURATION: configuration_page(), COMMANDS_PAGE: commands_page()}


def commands_page() -> str:
    """Return what `speculators COMMAND --help` prints, command by command."""
    parts = ["# Commands\n\nWhat `speculators COMMAND --help` prints.\n"]
    for command in COMMANDS.values():
        parts.append(
            f"## {command.name}\n\n{_sentence(command.summary)}\n\n"
            f"```text\n{command_help(command)}\n```\n"
        )
    return "\n".join(parts)


def configuration_page() -> str:
    """Return every key of every schema, and every file of `conf/`."""
    parts = [
        "# Configuration\n\n"
        "Every key there is, made from the schemas in `speculators/config/schema` and "
        "`speculators/algorithms/*/config.py`. A default of `???` has to be given, by a file of "
        "`conf/` or by you; the files below each group are its choices. `--cfg job` shows what a "
        "command line comes to, and `null` means that something is worked out or left out, as the "
        "key says.\n",
        _section("General", Config, ""),
    ]
    for group, hint in get_type_hints(Config).items():
        schema, _ = _schema_in(hint)
        if schema is not None:
            parts.append(_group(group, schema))
    parts += [_hidden(name) for name in _folders() if name not in get_type_hints(Config)]
    return "\n".join(parts)


def rows(schema: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, meaning) of every key of a schema, and below it.

    Args:
        schema: a dataclass.
        prefix: what stands before the key, its dot included.
    """
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        nested, suffix = _schema_in(hint)
        doc = field_doc(schema, field.name)
        if nested is not None and not prefix:  # a group: it has a section of its own
            continue
        if nested is None:
            yield key, describe(hint), _default(field), doc
        elif nested is not hint:  # it may be null, or hold any number of these
            yield key, describe(hint), _default(field), doc
            yield from rows(nested, f"{key}{suffix}.")
        else:
            yield from rows(nested, f"{key}.")


def _schema_in(hint: Any) -> tuple[Any, str]:
    """Return the schema a field holds, if any, and how its keys are reached."""
    if is_dataclass(hint):
        return hint, ""
    inner = [part for part in get_args(hint) if is_dataclass(part)]
    if not inner:
        return None, ""
    return inner[0], ".NAME" if dict in (hint, getattr(hint, "__origin__", None)) else ""


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        value = field.default_factory() if field.default_factory is not MISSING else _REQUIRED
    if is_dataclass(value) or value == {}:
        return ""
    return show(value.name if isinstance(value, Enum) else value)


def _group(group: str, hint: type) -> str:
    """Return the section of a group: its schemas, then its choices."""
    schemas = variants().get(group) or {"": hint}
    parts = [f"## {group}\n\n{_doc(hint)}\n"]
    for name, schema in schemas.items():
        title = f"{group}={name}" if name else ""
        parts.append(_section(title, schema, f"{group}."))
    return "\n".join([*parts, _choices(group)])


def _section(title: str, schema: Any, prefix: str) -> str:
    level = "##" if not prefix else "###"
    heading = [f"{level} {title}\n"] if title else []
    if title and prefix:
        heading.append(f"{_doc(schema)}\n")
    table = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, doc in rows(schema, prefix):
        table.append(f"| `{key}` | {_cell(kind)} | {_code(default)} | {_cell(doc)} |")
    return "\n".join([*heading, *table, ""])


def _choices(group: str) -> str:
    """Return the files of `conf/<group>/`, each as it stands, folded."""
    folder = config_folder() / group
    if not folder.is_dir():
        return ""
    parts = ["**Choices**\n"]
    for path in sorted(folder.glob("*.yaml")):
        first = file_comment(path).partition("\n")[0]
        body = "\n".join(f"    {line}" for line in path.read_text(encoding="utf-8").splitlines())
        title = f"{group}={path.stem}: {first}".replace('"', "'")
        parts.append(f'??? note "{title}"\n\n    ```yaml\n{body}\n    ```\n')
    return "\n".join(parts)


def _hidden(group: str) -> str:
    """Return the section of a folder that holds no key of its own: presets over several groups."""
    why = "composed by itself where a pair has a file" if group in HIDDEN_GROUPS else "presets"
    return f"## {group}\n\nValues of several groups at once: {why}.\n\n{_choices(group)}"


def _folders() -> list[str]:
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir())


def _doc(schema: type) -> str:
    return " ".join((schema.__doc__ or "").partition("\n\n")[0].split())


def _cell(text: str) -> str:
    escaped = html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")
    return escaped.replace("{", "&#123;")  # else it is read as attributes of the cell


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
