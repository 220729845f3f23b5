from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.config.schema import DataConfig, PartConfig
from speculators.config.schema.data import Contaminated, Duplicates
from speculators.data.contamination import PromptSets
from speculators.data.duplicates import DuplicateFilter, content_key
from speculators.data.readers import Part, open_parts
from speculators.data.report import DataReport
from speculators.data.rows import Origin, Record, RowProblem, TokenRow
from speculators.data.selection import Selection, Selector, shares
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn
from speculators.errors import DataError

WriteRows = Callable[..., Path]
Messages = Callable[..., dict[str, Any]]


@dataclass
class Listed:
    """A source of given records that counts how many were read."""

    records: list[Record]
    name: str = "listed"
    takes_first: bool = False
    num_read: int = 0

    def fingerprint(self) -> str:
        return self.name

    def rows(self) -> Iterator[Record | RowProblem]:
        for record in self.records:
            self.num_read += 1
            yield record


def record(question: str, answer: str, name: str | None = None, line: int = 1) -> Record:
    turns = (Turn("user", question), Turn("assistant", answer))
    item = Conversation(turns, name or f"{question}/{answer}", "s")
    return Record(item, Origin("f", line))


def listed(count: int, name: str = "a", **more: Any) -> Listed:
    return Listed([record(f"q{i}", f"{name}{i}") for i in range(count)], name, **more)


def select(
    parts: list[Part], limit: int | None = None, seed: int = 0, **settings: Any
) -> tuple[Selection, DataReport]:
    report = DataReport()
    selector = Selector(DataConfig(**settings), report, seed=seed, prompts=None)
    return selector.select(parts, limit), report


def sizes(selection: Selection) -> list[int]:
    return [len(rows) for rows in selection.rows]


def test_mixture_without_weights_uses_everything_up_to_each_limit() -> None:
    chosen, report = select([Part(listed(30)), Part(listed(50, "b"), limit=7)])
    assert sizes(chosen) == [30, 7]
    assert report.num_rows == 80
    assert len(list(chosen.records())) == chosen.num_records == 37


def test_weights_are_shares_and_no_source_repeats() -> None:
    parts = [Part(listed(30), weight=3), Part(listed(50, "b"), weight=1)]
    assert sizes(select(parts)[0]) == [30, 10]
    assert sizes(select(parts, 8)[0]) == [6, 2]
    assert sizes(select([parts[0], Part(listed(5, "c"))])[0]) == [15, 5]
    texts = [r.item.turns[1].content for r in select(parts)[0].records()]  # type: ignore[union-attr]
    assert len(set(texts)) == 40


def test_limit_of_a_mixture_is_drawn_from_all_rows_together() -> None:
    parts = [Part(listed(300)), Part(listed(100, "b"))]
    chosen, _ = select(parts, 100)
    assert chosen.num_records == 100
    assert 60 < sizes(chosen)[0] < 90
    again = [rows.tolist() for rows in select(parts, 100)[0].rows]
    assert again == [rows.tolist() for rows in chosen.rows]


def test_equal_lots_do_not_break_the_limit() -> None:
    same = Listed([record("q", "a", name="one") for _ in range(20)])
    assert select([Part(same), Part(same)], 7)[0].num_records == 7


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.1, 10)), min_size=1, max_size=5),
    st.none() | st.integers(5, 400),
)
def test_shares_never_exceed_what_is_there(
    given: list[tuple[int, float]], limit: int | None
) -> None:
    parts = [Part(Listed([]), weight=weight) for _, weight in given]
    counts = [count for count, _ in given]
    quotas = shares(counts, parts, limit)
    assert all(0 <= quota <= count for quota, count in zip(quotas, counts, strict=True))
    assert limit is None or sum(quotas) <= limit
    weights = np.array([weight for _, weight in given])
    most = min(np.array(counts) / (weights / weights.sum()))
    total = most if limit is None else min(most, limit)
    assert np.all(np.abs(total * weights / weights.sum() - quotas) < 1 + 1e-6)


def test_empty_source_of_a_weighted_mixture_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^empty: no row is left to use in the mixture$"):
        select([Part(listed(3), weight=1), Part(listed(0, "empty"), weight=1)])


def test_streamed_source_is_read_no_further_than_its_limit() -> None:
    source = listed(100, takes_first=True)
    chosen, _ = select([Part(source, limit=10)])
    assert source.num_read == 10
    assert [r.item.conversation_id for r in chosen.records()] == [
        r.item.conversation_id for r in source.records[:10]
    ]
    assert source.num_read == 20


def test_sources_of_a_mixture_keep_their_own_settings(
    write_rows: WriteRows, messages: Messages
) -> None:
    first = write_rows([{**messages("q", "a <<1+1=2>>2"), "lang": "de"}], "one.jsonl")
    second = write_rows([messages("q", "b <<x>>", tools="{")], "two.jsonl")
    config = DataConfig(
        sources={
            "one": PartConfig(path=str(first), remove="<<.*?>>", slice_by="lang"),
            "two": PartConfig(path=str(second), ignore_columns=["tools"], weight=2.0),
        }
    )
    parts = open_parts(config, vocab_size=9, seed=0)
    rows = [row for part in parts for row in part.source.rows()]
    items = [row.item for row in rows if isinstance(row, Record)]
    assert [item.source for item in items] == ["one.jsonl/de", "two.jsonl"]
    contents = [i.turns[-1].content for i in items if isinstance(i, Conversation)]
    assert contents == ["a 2", "b <<x>>"]
    assert [part.weight for part in parts] == [None, 2.0]


# ---- duplicates ---------------------------------------------------------------------------------

LONG = " ".join(f"word{i}" for i in range(60))


def test_equal_conversations_are_used_once() -> None:
    rows = [
        record("q", "a", "x"),
        record("q", "a ", "y", 2),
        record("q", "b", "x", 3),
        record("q", LONG, "n", 4),
        record("q", LONG + " extra", "m", 5),
    ]
    kept, report = select([Part(Listed(rows))], duplicates=Duplicates.exact)
    assert kept.rows[0].tolist() == [0, 2, 3, 4]
    assert report.dropped == {"duplicate": 1}
    assert report.examples == ["f:2: duplicate"]
    near, report = select([Part(Listed(rows))], duplicates=Duplicates.near)
    assert near.rows[0].tolist() == [0, 2, 3]
    assert report.dropped == {"duplicate": 1, "near duplicate": 1}
    assert sizes(select([Part(Listed(rows))])[0]) == [5]


def test_duplicates_are_found_across_sources() -> None:
    chosen, _ = select([Part(listed(5)), Part(listed(8))], duplicates=Duplicates.exact)
    assert sizes(chosen) == [5, 3]


def test_tools_and_reasoning_tell_conversations_apart() -> None:
    turns = (Turn("user", "q"), Turn("assistant", "a"))
    thought = (turns[0], Turn("assistant", "a", {"reasoning_content": "hm"}))
    items = [
        Conversation(turns, "x", "s"),
        Conversation(thought, "x", "s"),
        Conversation(turns, "x", "s", [{"name": "f"}]),
        TokenRow(np.array([1, 2]), np.array([False, True]), None, "s"),
        TokenRow(np.array([1, 2]), np.array([True, True]), None, "s"),
    ]
    assert len({content_key(Record(item, Origin("f", 1))) for item in items}) == 5


def test_estimated_similarity_is_close_to_the_true_one() -> None:
    """The signature agrees in about the Jaccard share of the pieces (64 hashes: +- 0.06)."""
    random = np.random.default_rng(0)
    filter_ = DuplicateFilter(Duplicates.near, 0.8)
    errors = []
    for changed in (0, 2, 5, 10, 20):
        for _ in range(8):
            words = [f"w{i}" for i in random.integers(0, 10**6, 200)]
            other = list(words)
            for place in random.choice(200, changed, replace=False):
                other[place] = "changed"
            a, b = (Turn("user", " ".join(w)) for w in (words, other))
            true = jaccard(a.content, b.content)
            signatures = [
                filter_.signature(Record(Conversation((turn,), "c", "s"), Origin("f", 1)))
                for turn in (a, b)
            ]
            errors.append(float((signatures[0] == signatures[1]).mean()) - true)
    assert abs(float(np.mean(errors))) < 0.03
    assert float(np.std(errors)) < 0.1


def jaccard(a: str, b: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


# ---- contamination ------------------------------------------------------------------------------


def test_conversations_that_hold_an_evaluation_prompt_are_found(write_rows: WriteRows) -> None:
    problem = "A train leaves at noon and a second one an hour later, when do they meet?"
    path = write_rows([{"question": problem}, {"turns": ["Hi there", "Again."]}], "test.jsonl")
    prompts = PromptSets([str(path)], str)
    assert prompts.num_prompts == 3
    rows = [
        record("Solve this: " + problem.upper(), "At two."),
        record("What rhymes with noon?", "He said: " + problem, line=2),
        record("hi, THERE!", "Hello.", line=3),
        record("Say hi there", "Hi there", line=4),
        record("A train leaves at noon and a second one an hour later.", "So?", line=5),
    ]
    report = DataReport()
    selector = Selector(DataConfig(), report, seed=0, prompts=prompts)
    assert selector.select([Part(Listed(rows))]).rows[0].tolist() == [3, 4]
    assert report.contaminated == {"test.jsonl": 3}
    assert report.dropped == {"holds a prompt of test.jsonl": 3}
    config = DataConfig(contaminated=Contaminated.keep)
    report = DataReport()
    selector = Selector(config, report, seed=0, prompts=prompts)
    assert selector.select([Part(Listed(rows))]).num_records == 5
    assert (report.contaminated, report.dropped) == ({"test.jsonl": 3}, {})


def test_rows_of_tokens_are_searched_as_text(
    write_rows: WriteRows, make_tokenizer: Callable[..., VerifierTokenizer]
) -> None:
    tokenizer = make_tokenizer("chatml")
    problem = "A train leaves at noon and a second one an hour later, when do they meet?"
    prompts = PromptSets([str(write_rows([{"question": problem}], "test.jsonl"))], tokenizer.decode)

    def tokens(question: str) -> Record:
        ids = np.array([*tokenizer.prompt_ids([Turn("user", question)]), 5, 6])
        return Record(TokenRow(ids, np.arange(len(ids)) > len(ids) - 3, None, "s"), Origin("f", 1))

    assert prompts.found_in(tokens(f"Solve it. {problem}")) == "test.jsonl"
    assert prompts.found_in(tokens("A train leaves at noon and a second one later.")) is None


def test_prompt_sets_that_cannot_be_read(write_rows: WriteRows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.prompt_sets=.*none\.jsonl: no such file"):
        PromptSets([str(tmp_path / "none.jsonl")], str)
    path = write_rows([{"prompt": "x"}, {"text": "y"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no prompt \(known: turns, prompt,"):
        PromptSets([str(path)], str)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: malformed JSON"):
        PromptSets([str(write_rows(["{"]))], str)
