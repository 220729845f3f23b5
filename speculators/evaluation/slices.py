"""Parts of an evaluation: by suite, by category, by length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.prompts import Prompt

UNCATEGORISED = "uncategorised"
_FIRST_EDGE = 64


@dataclass(frozen=True)
class PromptRow:
    """What is known of one prompt beside its acceptance.

    Attributes:
        prompt_id: id in its file.
        suite: the suite it belongs to, or None.
        category: its group within the suite, or None.
        fingerprint: hash of the first prompt's tokens and of the later user texts.
        prompt_tokens: tokens of the first prompt.
        tokens: answer tokens with drafting, all turns.
        seconds: what they took.
        plain_tokens: answer tokens without drafting; None when not compared.
        plain_seconds: what those took.
    """

    prompt_id: str
    suite: str | None
    category: str | None
    fingerprint: str
    prompt_tokens: int
    tokens: int
    seconds: float
    plain_tokens: int | None = None
    plain_seconds: float | None = None

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        first_ids: Sequence[int],
        *,
        tokens: int,
        seconds: float,
        plain_tokens: int | None = None,
        plain_seconds: float | None = None,
    ) -> PromptRow:
        """Describe a prompt.

        Args:
            prompt: what was asked.
            first_ids: tokens of its first turn, template included.
            tokens: see the class, as are the others.
            seconds: see the class.
            plain_tokens: see the class.
            plain_seconds: see the class.
        """
        text = json.dumps([list(first_ids), list(prompt.turns[1:])])
        return cls(
            prompt.prompt_id,
            prompt.suite,
            prompt.category,
            hashlib.sha256(text.encode()).hexdigest()[:16],
            len(first_ids),
            tokens,
            seconds,
            plain_tokens,
            plain_seconds,
        )


def by_suite(rows: Sequence[PromptRow]) -> dict[str, list[int]]:
    """Return the places of each suite's prompts; empty when no prompt has one."""
    if all(row.suite is None for row in rows):
        return {}
    return _group(rows, lambda row: row.suite or "")


def by_category(rows: Sequence[PromptRow]) -> dict[str, list[int]]:
    """Return the places of each category's prompts; empty when no prompt has one.

    With several suites a category is named `suite/category`, and suites without any are left out.
    """
    if all(row.category is None for row in rows):
        return {}
    if len({row.suite for row in rows}) < 2:
        return _group(rows, lambda row: row.category or UNCATEGORISED)
    return _group(rows, lambda row: row.category and f"{row.suite}/{row.category}")


def by_prompt_length(rows: Sequence[PromptRow]) -> dict[str, list[int]]:
    """Return the places of prompts by the tokens of their first turn, short ones first."""
    ordered = sorted({length_bin(row.prompt_tokens) for row in rows})
    groups = _group(rows, lambda row: length_name(length_bin(row.prompt_tokens)))
    return {name: groups[name] for name in map(length_name, ordered)}


def by_context_length(
    drafts: Iterable[Sequence[tuple[int, int]]], num_draft_tokens: int
) -> dict[str, Acceptance]:
    """Return acceptance by the tokens that stood before a draft, short contexts first.

    Args:
        drafts: for each prompt, (tokens before it, accepted tokens) of every draft.
        num_draft_tokens: tokens per draft, K.
    """
    bins: dict[int, list[list[int]]] = {}
    for prompt in drafts:
        for runs in bins.values():
            runs.append([])
        for context, accepted in prompt:
            bins.setdefault(length_bin(context), [[]])[-1].append(accepted)
    return {
        length_name(number): Acceptance.from_runs(
            [run for run in bins[number] if run], num_draft_tokens
        )
        for number in sorted(bins)
    }


def length_bin(tokens: int) -> int:
    """Return the number of a length's bin: below 64, then up to each power of two."""
    return max(0, (tokens // _FIRST_EDGE).bit_length())


def length_name(number: int) -> str:
    """Return what a bin holds, in tokens."""
    if number == 0:
        return f"0-{_FIRST_EDGE - 1}"
    low = _FIRST_EDGE << (number - 1)
    return f"{low}-{2 * low - 1}"


def _group(
    rows: Sequence[PromptRow], name: Callable[[PromptRow], str | None]
) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if label := name(row):
            groups.setdefault(label, []).append(place)
    return groups
