from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.config.schema import DataConfig, Truncation
from speculators.data.masking import Masked, MaskedRow
from speculators.data.report import DataReport
from speculators.data.rows import Origin, Record
from speculators.data.truncation import Cut, Cutter, split_points
from speculators.data.types import Conversation, Turn

RECORD = Record(Conversation((Turn("user", "q"), Turn("assistant", "a")), "c", "s"), Origin("f", 3))


def cut(mask: list[int], policy: Truncation, limit: int = 10) -> tuple[list[Cut], DataReport]:
    report = DataReport()
    row = MaskedRow(np.arange(len(mask)), np.array(mask, dtype=bool))
    cutter = Cutter(DataConfig(truncation=policy), limit, report)
    return cutter.cut(RECORD, Masked((row,))), report


LONG = [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]


def test_keep_cuts_the_end() -> None:
    (sample,), report = cut(LONG, Truncation.keep)
    assert sample.input_ids.tolist() == list(range(10))
    assert sample.is_truncated
    assert (report.num_truncated, report.num_lost_tokens) == (1, 8)
    assert report.dropped == {}


def test_drop_leaves_out_and_names() -> None:
    samples, report = cut(LONG, Truncation.drop)
    assert samples == []
    assert report.dropped == {"longer than the sequence": 1}
    assert report.examples == ["f:3: longer than the sequence: 18 tokens"]
    assert (report.num_truncated, report.num_lost_tokens) == (0, 18)
    assert len(cut(LONG[:10], Truncation.drop)[0]) == 1


def test_split_keeps_every_token_and_ends_pieces_behind_answers() -> None:
    samples, report = cut(LONG, Truncation.split)
    assert [sample.input_ids.tolist() for sample in samples] == [
        list(range(7)),
        list(range(7, 14)),
        list(range(14, 18)),
    ]
    assert all(sample.is_truncated for sample in samples)
    assert (report.num_truncated, report.num_lost_tokens) == (1, 0)
    assert report.num_conversations == 1


def test_a_piece_of_a_long_answer_is_no_row_without_a_mask() -> None:
    samples, _ = cut([0] * 4 + [1] * 36, Truncation.split)
    assert [bool(sample.loss_mask.all()) for sample in samples] == [False, True, True, True]
    assert not any(sample.is_unmasked for sample in samples)
    assert all(sample.is_unmasked for sample in cut([1] * 30, Truncation.split)[0])


def test_pieces_without_an_answer_are_counted_as_lost() -> None:
    samples, report = cut([0] * 12 + [1] * 4, Truncation.split)
    assert [sample.input_ids.tolist() for sample in samples] == [list(range(10, 16))]
    assert report.num_lost_tokens == 10
    reason = "piece of a long row with fewer than 2 supervised tokens"
    assert (report.dropped, report.num_asked_for) == ({reason: 1}, 1)


def test_a_row_of_which_no_piece_teaches_is_one_row_left_out() -> None:
    samples, report = cut(([0] * 9 + [1]) * 3, Truncation.split)
    assert samples == []
    reason = "fewer than 2 supervised tokens in every piece"
    assert (report.dropped, report.num_asked_for) == ({reason: 1}, 0)
    assert report.examples == [f"f:3: {reason}: 1"]
    assert (report.num_truncated, report.num_lost_tokens) == (0, 30)


def test_a_row_that_teaches_nothing_after_its_end_is_cut_is_lost_as_a_whole() -> None:
    samples, report = cut([0] * 12 + [1] * 4, Truncation.keep)
    assert samples == []
    assert report.dropped == {"fewer than 2 supervised tokens after truncation": 1}
    assert (report.num_truncated, report.num_lost_tokens) == (0, 16)


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(2, 40))
def test_pieces_are_the_row(mask: list[bool], limit: int) -> None:
    spans = split_points(np.array(mask), limit)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(mask)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert all(0 < stop - start <= limit for start, stop in spans)
    # No more pieces than twice what is needed: none but the last is less than half full.
    assert all(2 * (stop - start) >= limit for start, stop in spans[:-1])


@pytest.mark.parametrize("policy", Truncation)
def test_short_rows_are_left_alone(policy: Truncation) -> None:
    (sample,), report = cut([0, 1, 1], policy)
    assert not sample.is_truncated
    assert (report.num_truncated, report.num_lost_tokens) == (0, 0)
