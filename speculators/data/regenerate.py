"""On-policy answers: the verifier writes every assistant turn anew, and its tokens are kept.

A drafter serves one verifier, so it should learn from what that verifier says (data specification,
section 8). Who answers is all the same here: a verifier in this process, or servers.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speculators.console import open_console
from speculators.data.dialogue import Answerer, Dialogue, Rules
from speculators.data.masking import Masked
from speculators.data.report import DataReport
from speculators.data.rows import Record


def regenerate_rows(
    records: Iterable[Record], answerer: Answerer, rules: Rules, report: DataReport
) -> Generator[tuple[Record, Masked], None, None]:
    """Replace the answers of conversations by the verifier's own.

    Args:
        records: conversations, in the order in which their rows are wanted.
        answerer: the verifier.
        rules: lengths, sampling, policies.
        report: answers are counted in it.

    Yields:
        Every record with its rows, in order.

    Raises:
        SpeculatorsError: the verifier cannot be had, or fails too often.
    """
    asked: list[Record] = []

    def dialogues() -> Iterator[Dialogue]:
        for record in records:
            asked.append(record)
            yield Dialogue(record.item, rules)

    for dialogue in answerer.carry_on(dialogues()):
        report.num_remembered_answers += dialogue.num_remembered
        for answer in dialogue.answers:
            report.num_answer_tokens += len(answer.token_ids)
            reasons = report.finish_reasons
            reasons[answer.finish_reason] = reasons.get(answer.finish_reason, 0) + 1
        yield asked.pop(0), dialogue.masked()


class RegenerationBar:
    """Conversations done, answers, tokens per second and time left, while it is entered.

    Args:
        total: conversations.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, *, enabled: bool = True) -> None:
        self._bar = Progress(
            TextColumn("regenerating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=open_console(stderr=True),
            transient=True,
            disable=not enabled,
        )
        self._task = self._bar.add_task("", total=total, rate="")
        self._began = time.perf_counter()
        self._tokens = 0

    def __enter__(self) -> RegenerationBar:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._bar.stop()

    def watch(self, num_tokens: int, over: bool) -> None:
        """Count tokens just generated, and a conversation that ended with them."""
        self._tokens += num_tokens
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._bar.update(self._task, advance=int(over), rate=f"{rate:,.0f} tokens/s")
