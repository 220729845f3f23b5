"""What in a report a person should look at before training, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.config.schema import Truncation
from speculators.data.report import DataReport

_MANY = 0.05
_FEW_SUPERVISED = 0.05


def remarks(report: DataReport) -> list[str]:
    """Return a line for everything unusual, the worst first."""
    lines = [*_mask(report), *_split(report), *_rows(report)]
    return lines if report.num_samples else []


def _mask(report: DataReport) -> Iterator[str]:
    for role, (_, supervised) in sorted(report.roles.items()):
        if supervised and role not in ("assistant", "template"):
            yield (
                f"{supervised:,} supervised tokens spell {role} turns: look at samples (show=5); "
                "the template may repeat such text in answers"
            )
    if report.supervised_share < _FEW_SUPERVISED:
        yield (
            f"only {report.supervised_share:.1%} of the tokens are supervised: most of the work "
            "goes into prompts"
        )
    missing = report.num_answers - report.num_supervised_answers
    if missing > 0:
        yield (
            f"{missing:,} of {report.num_answers:,} answers are supervised in no row "
            "(data.multi_turn, unstable turns, calls that the template does not show)"
        )
    if report.num_open_turns > _MANY * report.num_supervised_answers:
        why = "see what the template writes (show=5)"
        if report.finish_reasons.get("length"):
            why = "raise data.regenerate.max_new_tokens, or data.regenerate.unfinished=drop"
        yield (
            f"{report.num_open_turns:,} answers have no end-of-turn token: a drafter does not "
            f"learn from them when to stop; {why}"
        )


def _split(report: DataReport) -> Iterator[str]:
    asked = report.validation_fraction
    share = report.num_validation / max(1, report.num_samples)
    if not asked or asked / 2 <= share <= 2 * asked:
        return
    yield (
        f"{share:.1%} of the samples validate where {asked:.1%} were asked for: the split is "
        f"between {report.num_groups:,} groups of conversations that begin alike, the largest of "
        f"{report.largest_group:,} samples; another seed divides them otherwise, "
        "data.validation_path=FILE fixes it"
    )


def _rows(report: DataReport) -> Iterator[str]:
    repeated = report.num_duplicates / max(1, report.num_samples)
    if repeated > _MANY:
        yield (
            f"{repeated:.1%} of the samples repeat an earlier one (conversations that begin alike "
            "can have the same first row): data.duplicates=exact leaves repeats out"
        )
    rows = max(1, sum(report.length_counts))
    if report.num_truncated > _MANY * rows:
        or_split = (
            "" if report.truncation == Truncation.split.value else ", or data.truncation=split"
        )
        yield (
            f"{report.num_truncated / rows:.1%} of the rows are longer than "
            f"{report.sequence_length:,} tokens: raise training.sequence_length{or_split}"
        )
    left_out = sum(report.dropped.values()) - report.num_asked_for
    if left_out > _MANY * report.num_rows:
        yield f"left out, of {report.num_rows:,} rows: {left_out:,} (rows or single turns); see why"
