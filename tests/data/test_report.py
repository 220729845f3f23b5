from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from speculators.console import open_console
from speculators.data.coloured import CONTEXT, SUPERVISED, coloured, print_samples
from speculators.data.masking import Masker
from speculators.data.prepared import SampleSet
from speculators.data.remarks import remarks
from speculators.data.report import DataReport, SourceCount, length_histogram
from speculators.data.report_page import render
from speculators.data.report_view import print_report
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Sample


def printed(show: Callable[[Console], Any]) -> str:
    console = open_console(file=io.StringIO(), width=100, color_system=None)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_report_shows_what_matters() -> None:
    report = DataReport(
        num_rows=12,
        num_conversations=10,
        num_samples=11,
        num_train=9,
        num_validation=2,
        num_tokens=1000,
        num_supervised=250,
        num_truncated=3,
        num_lost_tokens=77,
        num_split=1,
        num_open_turns=4,
        roles={"user": (300, 0), "assistant": (240, 240)},
        length_edges=[16, 32],
        length_counts=[3, 8],
        sources={"a": SourceCount(1, 2, 3), "b": SourceCount(4, 5, 6)},
        method="prefix rendering",
    )
    report.drop("malformed JSON", "f:1: malformed JSON", 2)
    text = printed(lambda console: print_report(report, console))
    for expected in (
        "11 (train 9, validation 2)",
        "250 (25.0%)",
        "3 rows, 77 tokens lost",
        "1 conversations (history is rewritten)",
        "prefix rendering",
        "malformed JSON",
        "16-31",
        "32+",
        "100.0%",
    ):
        assert expected in text


def test_names_are_printed_as_they_are() -> None:
    """What looks like the markup of `rich` is no markup in names, reasons and tokens."""
    names = ("rows.jsonl/[/INST]", "rows.jsonl/[bold]x")
    report = DataReport(
        sources={name: SourceCount(1, 2, 3) for name in names},
        contaminated={"[/a].jsonl": 2},
        method="prefix rendering",
    )
    report.drop("chat template: no [/TOOL_RESULTS] here")
    text = printed(lambda console: print_report(report, console))
    for expected in (*names, "[/a].jsonl", "no [/TOOL_RESULTS] here"):
        assert expected in text


def test_report_survives_json() -> None:
    report = DataReport(roles={"user": (3, 0)}, sources={"a": SourceCount(1, 2, 3)})
    report.drop("reason", "f:1: reason")
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def healthy(**changes: Any) -> DataReport:
    """A report about which there is nothing to say, changed."""
    values = {
        "num_rows": 100,
        "num_conversations": 100,
        "num_samples": 100,
        "num_validation": 10,
        "validation_fraction": 0.1,
        "num_tokens": 1000,
        "num_supervised": 500,
        "num_answers": 100,
        "num_supervised_answers": 100,
        "length_edges": [16, 32],
        "length_counts": [60, 40],
        "sequence_length": 64,
        "roles": {"user": (300, 0), "assistant": (500, 450), "template": (200, 50)},
        **changes,
    }
    return DataReport(**values)


def test_nothing_unusual_has_no_remarks() -> None:
    assert remarks(healthy()) == []
    assert "Nothing unusual" in render(healthy(), "rows")
    assert remarks(DataReport(num_rows=3)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"roles": {"tool": (10, 3)}}, "3 supervised tokens spell tool turns"),
        ({"num_supervised": 20}, "only 2.0% of the tokens are supervised"),
        ({"num_supervised_answers": 97}, "3 of 100 answers are supervised in no row"),
        ({"num_open_turns": 9}, "9 answers have no end-of-turn token"),
        (
            {"num_open_turns": 9, "finish_reasons": {"length": 9, "stop": 91}},
            "9 answers have no end-of-turn token: a drafter does not learn from them when to stop; "
            "raise data.regenerate.max_new_tokens",
        ),
        (
            {"num_open_turns": 9, "finish_reasons": {"stop": 100}},
            "9 answers have no end-of-turn token: a drafter does not learn from them when to stop; "
            "see what the template writes",
        ),
        ({"num_validation": 40}, "40.0% of the samples validate where 10.0% were asked for"),
        ({"num_duplicates": 30}, "30.0% of the samples repeat an earlier one"),
        ({"num_truncated": 8}, "8.0% of the rows are longer than 64 tokens"),
        (
            {"num_truncated": 8, "truncation": "split"},
            "8.0% of the rows are longer than 64 tokens: raise training.sequence_length",
        ),
        ({"dropped": {"unknown layout": 6}}, "left out, of 100 rows: 6 (rows or single turns)"),
    ],
)
def test_what_is_unusual_is_said(changes: dict[str, Any], expected: str) -> None:
    (line,) = remarks(healthy(**changes))
    assert line.startswith(expected)
    assert "Nothing unusual" not in render(healthy(**changes), "rows")
    printing = printed(lambda console: print_report(healthy(**changes), console))
    assert expected[:40] in " ".join(printing.split())


def test_what_a_setting_asks_for_is_no_surprise() -> None:
    report = healthy()
    report.drop("duplicate", "f:1: duplicate", 90, asked_for=True)
    assert remarks(report) == []


def test_page_names_places_under_their_reason() -> None:
    report = healthy()
    report.drop("malformed JSON", "f:1: malformed JSON: at column 2")
    report.drop("unknown role", "f:2: unknown role: 'x'", 3)
    page = render(report, "rows")
    first, second = page.index("unknown role<ul>"), page.index("malformed JSON<ul>")
    assert first < page.index("f:2: unknown role") < second < page.index("f:1: malformed JSON")


def test_page_colours_what_is_longer_than_the_sequence() -> None:
    report = healthy(length_edges=[16, 32, 65], length_counts=[60, 30, 10])
    page = render(report, "rows")
    assert page.count('class="late"') == 1
    assert "65+ tokens: 10 rows, 10.0%" in page
    wrong = render(healthy(roles={"user": (10, 2)}), "rows")
    assert 'class="n wrong">2 (20.0%)' in wrong


def test_only_a_few_examples_of_each_reason_are_kept() -> None:
    report = DataReport()
    for line in range(10):
        report.drop("reason", f"f:{line}")
    assert report.dropped == {"reason": 10}
    assert report.examples == ["f:0", "f:1", "f:2"]


@pytest.mark.parametrize(
    ("lengths", "edges", "counts"),
    [
        ([1, 15, 16, 63, 64, 65, 900], [0, 16, 32, 65], [2, 1, 2, 2]),
        ([40, 64], [32, 65], [2, 0]),
        ([], [0, 16, 32, 65], [0, 0, 0, 0]),
    ],
)
def test_histogram(lengths: list[int], edges: list[int], counts: list[int]) -> None:
    assert length_histogram(np.array(lengths, dtype=np.int64), 64) == (edges, counts)


def make_sample(tokenizer: VerifierTokenizer, conversation: Conversation) -> Sample:
    row = Masker(tokenizer).mask([conversation])[0].rows[0]
    ids, mask = torch.from_numpy(row.input_ids), torch.from_numpy(row.loss_mask)
    return Sample(ids, mask, "s", "c")


def test_supervised_text_is_coloured(
    make_tokenizer: Callable[..., VerifierTokenizer], chat: Callable[..., Conversation]
) -> None:
    tokenizer = make_tokenizer("chatml")
    text = coloured(make_sample(tokenizer, chat("Hi", "Hel\nlo")), tokenizer)
    spans = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert spans == [
        ("<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n", CONTEXT),
        ("Hel⏎\nlo<|im_end|>", SUPERVISED),
        ("⏎\n", CONTEXT),
    ]


def test_samples_are_printed_with_a_heading(
    tmp_path: Path,
    make_tokenizer: Callable[..., VerifierTokenizer],
    chat: Callable[..., Conversation],
) -> None:
    import pyarrow as pa

    tokenizer = make_tokenizer("chatml")
    sample = make_sample(tokenizer, chat("Hi [b]", "Hello"))
    table = pa.table(
        {
            "input_ids": pa.array([sample.input_ids.tolist()] * 3, pa.list_(pa.int64())),
            "loss_mask": pa.array([sample.loss_mask.int().tolist()] * 3, pa.list_(pa.int64())),
            "seq_len": [len(sample)] * 3,
            "sample_id": ["s", "t", "u"],
            "conversation_id": ["c", "c", "d"],
        }
    )
    samples = SampleSet(table, np.arange(3))
    text = printed(lambda console: print_samples(samples, tokenizer, 5, console))
    count = int(sample.loss_mask.sum())
    assert f"sample 0: {len(sample)} tokens, {count} supervised" in text
    assert "sample 1: " not in text  # another one of the same conversation
    assert "sample 2: " in text
    assert "Hi [b]<|im_end|>" in text
