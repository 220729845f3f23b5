from __future__ import annotations

import io
from functools import partial

import pytest
import torch

from speculators.console import open_console
from speculators.data.coverage import (
    coverage_view,
    tau_cap,
    vocabulary_coverage,
)
from speculators.data.unused_tokens import unused_token_ids
from speculators.data.vocabulary import DraftVocabulary, build_vocabulary, forced_token_ids
from speculators.errors import CheckpointError, ConfigError


def counts_of(size: int, **seen: int) -> torch.Tensor:
    counts = torch.zeros(size, dtype=torch.int64)
    for name, count in seen.items():
        counts[int(name[1:])] = count
    return counts


def test_worked_example_of_the_specification() -> None:
    counts = counts_of(10, t9=3, t1=9, t5=4, t4=4)
    vocabulary = build_vocabulary(counts, 4, vocab_size=10, num_tokens=10)
    assert vocabulary.ids.tolist() == [1, 4, 5, 9]
    assert vocabulary.d2t.tolist() == [1, 3, 3, 6]
    assert vocabulary.t2d.tolist() == [i in (1, 4, 5, 9) for i in range(10)]
    assert vocabulary.draft_ids()[9] == 3
    assert vocabulary.draft_ids()[2] == -1
    again = DraftVocabulary.from_maps(vocabulary.d2t, vocabulary.t2d)
    assert again.fingerprint == vocabulary.fingerprint


def test_absolute_ids_are_not_taken_for_offsets() -> None:
    vocabulary = build_vocabulary(counts_of(10, t9=3, t1=9), 2, vocab_size=10, num_tokens=10)
    with pytest.raises(CheckpointError, match="d2t must hold offsets"):
        DraftVocabulary.from_maps(vocabulary.ids, vocabulary.t2d)


def test_ties_go_to_the_smaller_id_and_forced_ids_come_first() -> None:
    counts = counts_of(10, t2=5, t3=5, t7=5, t8=1)
    build = partial(build_vocabulary, counts, 2, vocab_size=10, num_tokens=10)
    assert build().ids.tolist() == [2, 3]
    assert build(forced_ids=[9]).ids.tolist() == [2, 9]


def test_unseen_real_tokens_fill_up_before_rows_without_a_token() -> None:
    build = partial(build_vocabulary, counts_of(10, t6=5), vocab_size=10, num_tokens=8)
    assert build(3).ids.tolist() == [0, 1, 6]
    assert build(9).ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert build(10).is_full


@pytest.mark.parametrize(
    ("size", "forced", "message"),
    [
        (11, (), "speculator.draft_vocab_size=11: must lie between 1 and the verifier's 10 rows"),
        (0, (), "speculator.draft_vocab_size=0: must lie between 1 and the verifier's 10 rows"),
        (1, (3, 4), "smaller than the 2 special tokens that must be kept"),
        (2, (10,), r"forced ids must lie in 0\.\.9"),
    ],
)
def test_impossible_sizes(size: int, forced: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_vocabulary(counts_of(10), size, vocab_size=10, num_tokens=10, forced_ids=forced)


def test_forced_ids_are_ends_and_special_tokens_that_were_seen() -> None:
    assert forced_token_ids(counts_of(10, t4=1), [4, 5, 99], [8]) == [4, 8]


@pytest.mark.parametrize(("coverage", "expected"), [(0.95, 6.73), (0.80, 4.16), (1.0, 8.0)])
def test_cap_of_the_acceptance_length(coverage: float, expected: float) -> None:
    assert tau_cap(coverage, 7) == pytest.approx(expected, abs=0.01)


def test_coverage() -> None:
    counts = counts_of(10, t1=90, t2=6, t3=4)
    vocabulary = build_vocabulary(counts, 2, vocab_size=10, num_tokens=10)
    slices = {"code": counts_of(10, t1=1, t3=4), "tiny": counts_of(10, t3=1)}
    report = vocabulary_coverage(vocabulary, counts, 7, slices)
    assert report.coverage == pytest.approx(0.96)
    assert report.tau_cap == pytest.approx(tau_cap(0.96, 7))
    assert report.left_out == ((3, 4),)
    assert report.slices == {"code": pytest.approx(0.2)}
    assert report.head_bytes(4096) == 2 * 4096 * 2
    assert [line.split(":")[0] for line in report.warnings()] == [
        "the draft vocabulary covers only 20.0% of code"
    ]
    assert coverage_view(report, 4096).row_count == 6
    named = vocabulary_coverage(vocabulary, counts, 7, {"rows/[/INST]": counts})
    console = open_console(file=io.StringIO(), width=100)
    console.print(coverage_view(named, 4096))
    assert isinstance(console.file, io.StringIO)
    assert "coverage of rows/[/INST]" in console.file.getvalue()
    assert vocabulary_coverage(vocabulary, counts_of(10), 7).coverage == 1.0


def test_unused_rows_are_ranked() -> None:
    used = torch.zeros(12, dtype=torch.bool)
    used[[0, 3]] = True
    special = {7: "<|reserved_5|>", 8: "<|im_end|>", 6: "[MASK]", 9: "<|tool|>"}
    ranked = unused_token_ids(12, 10, used, special, unk_token_id=2, forbidden=[8, 1])
    assert ranked == [10, 11, 6, 7, 2, 5, 4, 9]
    assert used.sum() == 2, "the argument is left alone"


def test_no_row_is_unused() -> None:
    assert unused_token_ids(4, 4, torch.ones(4, dtype=torch.bool), {}) == []
