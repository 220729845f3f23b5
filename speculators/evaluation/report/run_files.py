"""What a run directory holds for its report; every file is optional."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from speculators.errors import DataError

Line = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run directory; None or empty where a file is missing.

    Attributes:
        folder: the run directory.
        config_text: `resolved.yaml` as it stands.
        config: the same, parsed.
        provenance: `provenance.json`.
        metrics: lines of `metrics.jsonl`.
        timing: lines of `timing.jsonl`.
        result: `result.json`.
        evaluation: `evaluation.json`.
        data_report: `data_report.json`.
    """

    folder: Path
    config_text: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: list[Line] = field(default_factory=list)
    timing: list[Line] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    data_report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Read what lies in `folder`.

        Raises:
            DataError: no such directory, or a file in it that is not what its name says.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: is not a run directory")
        text = _text(folder / "resolved.yaml")
        return cls(
            folder,
            config_text=text,
            config=_parse_yaml(folder / "resolved.yaml", text),
            provenance=_read_object(folder / "provenance.json"),
            metrics=_lines(folder / "metrics.jsonl"),
            timing=_lines(folder / "timing.jsonl"),
            result=_read_object(folder / "result.json"),
            evaluation=_read_object(folder / "evaluation.json"),
            data_report=_read_object(folder / "data_report.json"),
        )

    def validation(self) -> Line:
        """Return the last line of validation, empty without one."""
        return next((line for line in reversed(self.metrics) if is_validation(line)), {})


def is_validation(line: Line) -> bool:
    """Whether a line was measured on held-out rows."""
    return line.get("kind") == "validation"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _parse_yaml(path: Path, text: str | None) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    return parsed if isinstance(parsed, dict) else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{path}: must hold a JSON object, got {type(parsed).__name__}")
    return parsed


def _lines(path: Path) -> list[Line]:
    """Read JSON lines; the last one may be unfinished, as a killed run leaves it."""
    lines: list[Line] = []
    rows = (_text(path) or "").split("\n")
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            parsed = json.loads(row)
        except json.JSONDecodeError as error:
            if number == len(rows):
                break
            raise DataError(f"{path}:{number}: not JSON ({error.msg})") from error
        if isinstance(parsed, dict) and isinstance(parsed.get("step"), int):
            lines.append(parsed)
    return lines
