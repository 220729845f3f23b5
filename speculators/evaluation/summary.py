"""An evaluation as a table on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from speculators.evaluation.acceptance import DEFINITION, Acceptance
from speculators.evaluation.result import EvaluationResult

_POSITIONS = 4


def show_result(result: EvaluationResult, console: Console) -> None:
    """Print the table, and below it what its numbers mean."""
    console.print(summary_table(result))
    console.print(DEFINITION, style="dim")


def summary_table(result: EvaluationResult) -> Table:
    """Return acceptance per suite or category and in all, with the rest in the caption.

    Fits 80 columns; the first positions have columns, all of them stand in the caption. With
    several suites their categories are left to the written tables.
    """
    shown = min(result.acceptance.num_draft_tokens, _POSITIONS)
    table = Table(
        title="Speculative decoding",
        caption="\n".join(_captions(result)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("prompts", overflow="ellipsis", no_wrap=True)
    for name in ("n", "tau", "95 %", "rate", *(f"#{k}" for k in range(1, shown + 1))):
        table.add_column(name, justify="right", no_wrap=True)
    several = result.mean_of_suites is not None
    for name, part in (result.by_suite if several else result.by_category).items():
        table.add_row(name, *_row(part, shown, result.seed))
    table.add_section()
    if result.mean_of_suites is not None:
        table.add_row("mean of suites", "", f"{result.mean_of_suites:.3f}")
    table.add_row("all", *_row(result.acceptance, shown, result.seed), style="bold")
    return table


def _row(part: Acceptance, shown: int, seed: int) -> list[str]:
    interval = part.length_interval(seed=seed)
    return [
        str(part.num_prompts),
        f"{part.length:.3f}",
        "-" if interval is None else f"{interval[0]:.2f}-{interval[1]:.2f}",
        f"{part.rate:.1%}",
        *(f"{share:.0%}" for share in part.per_position[:shown]),
    ]


def _captions(result: EvaluationResult) -> list[str]:
    shares = " ".join(f"{share:.1%}" for share in result.acceptance.per_position)
    speed = [f"{result.speculative.tokens_per_second:.0f} tok/s"]
    if result.plain is not None and result.speedup is not None:
        speed += [
            f"plain {result.plain.tokens_per_second:.0f} tok/s",
            f"speed-up {result.speedup:.2f}",
        ]
    quality = [f"verifier calls saved {result.verifier_calls_saved:.1%}"]
    if result.lossless_prompts is not None:
        quality.append(f"lossless on {result.lossless_prompts} of {result.num_prompts} prompts")
    quality.append(f"distinct 4-grams {result.distinct_4gram_share:.0%}")
    if skipped := result.settings.get("num_skipped_prompts"):
        quality.append(f"{skipped} prompts left out: too long")
    if result.num_unanswered_turns:
        quality.append(f"{result.num_unanswered_turns} later turns left out: context full")
    captions = [f"per position: {shares}", " · ".join(quality), " · ".join(speed)]
    if len(result.by_context) > 1:
        parts = (f"{name} {part.length:.2f}" for name, part in result.by_context.items())
        captions.append(f"tau by tokens before the draft: {' · '.join(parts)}")
    return captions


def show_expected(compared: Mapping[str, Any], console: Console) -> None:
    """Print a comparison with a published row, one line per suite."""
    for name, one in compared["suites"].items():
        length = "-" if one["measured"] is None else f"{one['measured']:.3f}"
        console.print(
            f"{name}: acceptance length {length}, expected {one['expected']:.3f}: {one['verdict']}",
            soft_wrap=True,
        )
    source = f"expected: {compared['source']}"
    console.print(source, style="dim", soft_wrap=True)
