"""An evaluation as a table on the screen."""

from __future__ import annotations

from rich import box
from rich.table import Table

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.result import EvaluationResult

_POSITIONS = 4


def summary_table(result: EvaluationResult) -> Table:
    """Return acceptance per category and in all, with losslessness and speed in the caption.

    Fits 80 columns; the first positions have columns, all of them stand in the caption.
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
    for name, part in result.by_category.items():
        table.add_row(name, *_row(part, shown, result.seed))
    table.add_section()
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
    if result.num_unanswered_turns:
        quality.append(f"{result.num_unanswered_turns} later turns left out: context full")
    return [f"per position: {shares}", " · ".join(quality), " · ".join(speed)]
