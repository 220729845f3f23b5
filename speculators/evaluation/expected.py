"""Expected against measured: a published row beside an evaluation, and whether they compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from speculators.config.schema import ExpectedConfig, ExpectedResult
from speculators.evaluation.tables import Grid


def against_published(expected: ExpectedConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """Compare an evaluation with what was published.

    Where both drafted differently many tokens, the positions both have are compared; without
    published positions nothing is.

    Args:
        expected: the published row.
        found: what `evaluation.json` holds.

    Returns:
        `source`, `tolerance`, and by suite: both lengths, what differs, and a verdict in words.
    """
    suites = {
        name: _suite(expected, name, published, found)
        for name, published in expected.suites.items()
    }
    return {"source": expected.source, "tolerance": expected.tolerance, "suites": suites}


def expected_grid(compared: Mapping[str, Any]) -> Grid:
    """Return the comparison as a table."""
    rows = []
    for name, one in compared["suites"].items():
        measured = one["measured"]
        shares = (" ".join(f"{share:.1%}" for share in part or ()) for part in one["positions"])
        length = "-" if measured is None else f"{measured:.3f}"
        rows.append((name, one["verdict"], f"{one['expected']:.3f}", length, *shares))
    header = ("prompts of", "verdict", "expected", "measured", "positions there", "here")
    return Grid(
        "expected",
        "Expected and measured",
        header,
        tuple(rows),
        f"Acceptance length; expected: {compared['source']}. Accepted tokens per draft may differ "
        f"by {compared['tolerance']:.0%}.",
    )


def _suite(
    expected: ExpectedConfig, name: str, published: ExpectedResult, found: Mapping[str, Any]
) -> dict[str, Any]:
    part = (found.get("suites") or {}).get(name)
    there = published.acceptance_per_position
    one: dict[str, Any] = {
        "expected": published.acceptance_length,
        "measured": None,
        "positions": (there, None),
    }
    if part is None:
        return {**one, "differs": [], "verdict": f"not measured: evaluation={name}"}
    here, drafted = part["acceptance_per_position"], expected.num_draft_tokens
    both = min(len(here), drafted or len(here))
    one["measured"] = 1 + sum(here[:both])
    one["positions"] = (there and there[:both], here[:both])
    if there is not None:
        one["expected"] = 1 + sum(there[:both])
    differs = list(_differences(expected, published, part, found["settings"]))
    if differs:
        return {**one, "differs": differs, "verdict": f"not comparable: {'; '.join(differs)}"}
    note = "" if drafted in (None, len(here)) else f", over the first {both} positions"
    ends = part.get("acceptance_length_ci95") if both == len(here) else None
    return {**one, "differs": [], "verdict": _verdict(one, expected.tolerance, ends) + note}


def _differences(
    expected: ExpectedConfig,
    published: ExpectedResult,
    part: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Iterator[str]:
    drafted = len(part["acceptance_per_position"])
    if expected.num_draft_tokens not in (None, drafted) and not published.acceptance_per_position:
        yield f"{drafted} drafted tokens, {expected.num_draft_tokens} there"
    pairs = [
        ("temperature", settings.get("temperature"), expected.temperature),
        ("new tokens", settings.get("max_new_tokens"), expected.max_new_tokens),
        ("prompts", part["num_prompts"], published.num_prompts),
        (
            "verifier",
            PurePath(settings.get("verifier") or "").name,
            PurePath(expected.verifier).name,
        ),
    ]
    for what, here, there in pairs:
        if there is not None and here != there:
            yield f"{what} {here}, {there} there"


def _verdict(one: Mapping[str, Any], tolerance: float, ends: list[float] | None) -> str:
    more, allowed = one["measured"] - one["expected"], tolerance * (one["expected"] - 1)
    if abs(more) <= allowed:
        return "as published"
    if more > 0:
        return "better than published"
    near = ends is not None and ends[1] >= one["expected"] - allowed
    return "worse than published" + (", but its interval reaches the tolerance" if near else "")
