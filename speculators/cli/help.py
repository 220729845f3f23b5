"""Help texts, made from the commands, the YAML files and the schemas.

They answer at once: neither Hydra nor torch is imported.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from speculators.cli.commands import COMMANDS, Command
from speculators.config.discovery import algorithms, variants
from speculators.config.folder import config_folder, file_comment, group_choices
from speculators.config.schema import Config
from speculators.config.wording import field_doc, field_hint

_WIDTH = 100
_FLAGS = """\
  --cfg job            print the composed configuration and stop; --resolve fills in references
  --info defaults-tree show which file each part comes from
  --multirun, -m       run every combination of comma-separated values
  --config-dir DIR     look for configurations in DIR too, for example sweeps or a run directory
  --config-name NAME   start from NAME.yaml instead
  --hydra-help         everything else that Hydra offers, shell completion among it"""


def overview() -> str:
    """Return the help of the program as a whole."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {c.name:<{width}} {c.summary}" for c in COMMANDS.values())
    return (
        "usage: speculators COMMAND [KEY=VALUE ...] [FLAGS]\n\n"
        "Trains drafters that make a language model faster without changing what it says.\n\n"
        f"Commands\n{commands}\n\n"
        "speculators COMMAND --help shows its choices and keys.\n"
        "In a checkout, python train.py is speculators train."
    )


def command_help(command: Command) -> str:
    """Return the help of one command: what it does, examples, choices, main keys, flags."""
    parts = [
        f"usage: speculators {command.name} [KEY=VALUE ...] [FLAGS]",
        file_comment(config_folder() / f"{command.name}.yaml"),
        "Choices, GROUP=NAME\n" + "\n".join(_choices()),
        "Keys, KEY=VALUE (the main ones; --cfg job shows all)\n" + "\n".join(_keys(command)),
        f"Flags\n{_FLAGS}",
    ]
    return "\n\n".join(parts)


def _choices() -> Iterator[str]:
    groups = group_choices()
    groups["speculator"] = sorted({*groups["speculator"], *algorithms()})
    for group, names in groups.items():
        yield from _columns(group, "  ".join(names), 17)


def _keys(command: Command) -> Iterator[str]:
    width = max(map(len, command.keys)) + 2
    for key in command.keys:
        yield from _columns(key, _meaning(key), width)


def _meaning(key: str) -> str:
    """Return the documentation of a dotted key; of several schemas, the first that has it."""
    *path, name = key.split(".")
    schemas: list[type] = [Config]
    for group in path:
        hints = [field_hint(schema, group) for schema in schemas]
        schemas = [hint for hint in hints if isinstance(hint, type)]
        schemas += variants().get(group, {}).values()
    return next((doc for schema in schemas if (doc := field_doc(schema, name))), "")


def _columns(left: str, right: str, width: int) -> Iterator[str]:
    indent = " " * (width + 2)
    first, *rest = textwrap.wrap(right, _WIDTH - len(indent)) or [""]
    yield f"  {left:<{width}}{first}".rstrip()
    yield from (indent + text for text in rest)
