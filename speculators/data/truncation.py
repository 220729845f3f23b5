"""Rows that are longer than the sequence: cut, dropped, or split into several samples."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from speculators.config.schema import DataConfig, Truncation
from speculators.config.schema.data import BadRows
from speculators.data.masking import Masked, MaskedRow
from speculators.data.report import DataReport
from speculators.data.roles import add_roles
from speculators.data.rows import Record
from speculators.data.types import Conversation

_HIDDEN = "tool call that the chat template does not show"


@dataclass(frozen=True)
class Cut:
    """One sample.

    Attributes:
        input_ids: at most as many tokens as the sequence has.
        loss_mask: True on supervised tokens.
        is_truncated: whether it is not the whole row.
        is_unmasked: whether the whole row is supervised; a piece of a long answer may well be.
    """

    input_ids: Int[np.ndarray, "token"]
    loss_mask: Bool[np.ndarray, "token"]
    is_truncated: bool
    is_unmasked: bool


class Cutter:
    """Fits masked rows to the sequence length and counts what is lost.

    Args:
        config: truncation policy and smallest number of supervised tokens.
        sequence_length: longest sample, in tokens.
        report: counts are added to it.

    Attributes:
        lengths: tokens of every row before it was cut.
        supervised: supervised tokens of every row before it was cut.
    """

    def __init__(self, config: DataConfig, sequence_length: int, report: DataReport) -> None:
        self._config, self._limit, self._report = config, sequence_length, report
        self.lengths, self.supervised = array("q"), array("q")

    def cut(self, record: Record, masked: Masked) -> list[Cut]:
        """Return the samples of one record and count what is left out."""
        report, place = self._report, record.origin
        if masked.refusal is not None:
            detail = f": {masked.detail}" if masked.detail else ""
            report.drop(masked.refusal, f"{place}: {masked.refusal}{detail}")
        for line in masked.unstable:
            stops = self._config.bad_rows is BadRows.error
            report.drop("unstable turn", f"{place}: unstable {line}", stops=stops)
        for line in masked.hidden:
            report.drop(_HIDDEN, f"{place}: {_HIDDEN}: {line}")
        if isinstance(record.item, Conversation) and masked.refusal is None:
            report.num_answers += sum(turn.role == "assistant" for turn in record.item.turns)
            report.num_supervised_answers += sum(row.num_answers for row in masked.rows)
        samples = [list(self._cut_row(record, row)) for row in masked.rows]
        report.num_conversations += any(samples)
        report.num_split += len(masked.rows) > 1
        return [sample for row in samples for sample in row]

    def _cut_row(self, record: Record, row: MaskedRow) -> Iterator[Cut]:
        length, report = len(row.input_ids), self._report
        self.lengths.append(length)
        self.supervised.append(int(row.loss_mask.sum()))
        add_roles(report.roles, row.roles)
        report.num_open_turns += row.num_open_turns
        policy, long = self._config.truncation, length > self._limit
        if long and policy is Truncation.drop:
            report.num_lost_tokens += length
            what = f"{record.origin}: longer than the sequence: {length} tokens"
            report.drop("longer than the sequence", what, asked_for=True)
            return
        whole = policy is Truncation.split or not long
        spans = split_points(row.loss_mask, self._limit) if whole else [(0, self._limit)]
        least = self._config.min_supervised_tokens
        found = [int(row.loss_mask[start:stop].sum()) for start, stop in spans]
        if not any(supervised >= least for supervised in found):
            self._leave_out(record, length, max(found), is_split=whole)
            return
        kept = 0
        unmasked = bool(row.loss_mask.all())
        for (start, stop), supervised in zip(spans, found, strict=True):
            if supervised < least:  # a long question gives such pieces, and nobody misses them
                reason = f"piece of a long row with fewer than {least} supervised tokens"
                report.drop(reason, f"{record.origin}: {reason}: {supervised}", asked_for=True)
                continue
            kept += stop - start
            mask = row.loss_mask[start:stop]
            yield Cut(row.input_ids[start:stop], mask, is_truncated=long, is_unmasked=unmasked)
        if long:
            what = "split into several samples" if whole else f"cut to {self._limit} tokens"
            report.truncate(f"{record.origin}: {length} tokens: {what}", length - kept)

    def _leave_out(self, record: Record, length: int, most: int, *, is_split: bool) -> None:
        """Count one row of which nothing teaches enough; `most` tokens of a piece do at best."""
        reason = f"fewer than {self._config.min_supervised_tokens} supervised tokens"
        if length > self._limit:
            reason += " in every piece" if is_split else " after truncation"
            self._report.num_lost_tokens += length
        self._report.drop(reason, f"{record.origin}: {reason}: {most}")


def split_points(mask: Bool[np.ndarray, "token"], limit: int) -> list[tuple[int, int]]:
    """Cut a row into pieces of at most `limit` tokens.

    A piece ends where an answer ends, if one does in its second half, so that the next piece
    begins with a question; otherwise in the middle of the text.

    Args:
        mask: the row's loss mask.
        limit: longest piece, in tokens.

    Returns:
        First and one past the last token of each piece; together they are the row.
    """
    ends = np.flatnonzero(mask[:-1] & ~mask[1:]) + 1
    spans, start = [], 0
    while len(mask) - start > limit:
        inside = ends[(ends > start + limit // 2) & (ends <= start + limit)]
        stop = int(inside[-1]) if len(inside) else start + limit
        spans.append((start, stop))
        start = stop
    return [*spans, (start, len(mask))]
