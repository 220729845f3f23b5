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

from speculators.data.coloured import CONTEXT, SUPERVISED, coloured, print_samples
from speculators.data.masking import Masker
from speculators.data.prepared import SampleSet
from speculators.data.report import DataReport, SourceCount, length_histogram, print_report
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Sample


def printed(show: Callable[[Console], Any]) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
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


def test_report_survives_json() -> None:
    report = DataReport(roles={"user": (3, 0)}, sources={"a": SourceCount(1, 2, 3)})
    report.drop("reason", "f:1: reason")
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


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
            "input_ids": pa.array([sample.input_ids.tolist()], pa.list_(pa.int64())),
            "loss_mask": pa.array([sample.loss_mask.int().tolist()], pa.list_(pa.int64())),
            "seq_len": [len(sample)],
            "sample_id": ["s"],
            "conversation_id": ["c"],
        }
    )
    samples = SampleSet(table, np.arange(1))
    text = printed(lambda console: print_samples(samples, tokenizer, 5, console))
    count = int(sample.loss_mask.sum())
    assert f"sample 0: {len(sample)} tokens, {count} supervised" in text
    assert "Hi [b]<|im_end|>" in text
